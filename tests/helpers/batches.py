"""Batches without an engine: sequences as (new token ids, first position, block table)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from llama.ops.batch import Batch


@dataclass(frozen=True)
class NewTokens:
    """What one sequence brings to a step; positions before `start` are in the cache."""

    token_ids: Sequence[int]
    start: int
    block_table: tuple[int, ...]


def make_batch(
    sequences: Sequence[NewTokens],
    *,
    block_size: int,
    logit_rows: Sequence[int] | None = None,
    device: str = "cpu",
) -> Batch:
    """The Batch of these sequences; logits are wanted for every token unless `logit_rows` says."""
    num_new = tuple(len(sequence.token_ids) for sequence in sequences)
    rows = range(sum(num_new)) if logit_rows is None else logit_rows
    positions = [
        range(sequence.start, sequence.start + n)
        for sequence, n in zip(sequences, num_new, strict=True)
    ]
    slots = [
        sequence.block_table[position // block_size] * block_size + position % block_size
        for sequence, own in zip(sequences, positions, strict=True)
        for position in own
    ]

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        token_ids=tensor([token for sequence in sequences for token in sequence.token_ids]),
        positions=tensor([position for own in positions for position in own]),
        slot_mapping=tensor(slots),
        logit_rows=tensor(list(rows)),
        block_tables=tuple(sequence.block_table for sequence in sequences),
        num_new_tokens=num_new,
        context_lens=tuple(own.stop for own in positions),
        cu_seqlens=tuple(accumulate(num_new, initial=0)),
        block_size=block_size,
    )


def shuffled_tables(
    lengths: Sequence[int], *, num_blocks: int, block_size: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Block tables that hold `lengths` tokens, from one shuffled heap of blocks."""
    blocks = list(range(num_blocks))
    random.Random(seed).shuffle(blocks)
    counts = [-(-length // block_size) for length in lengths]
    stops = list(accumulate(counts))
    assert stops[-1] <= num_blocks
    return [tuple(blocks[stop - n : stop]) for stop, n in zip(stops, counts, strict=True)]
