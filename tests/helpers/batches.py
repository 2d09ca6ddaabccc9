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
    """What one sequence brings to a step; positions before `start` are in the cache.

    `num_prompt_tokens` None stands for all tokens up to and including the new ones.
    """

    token_ids: Sequence[int]
    start: int
    block_table: tuple[int, ...]
    num_prompt_tokens: int | None = None


def make_batch(
    sequences: Sequence[NewTokens],
    *,
    block_size: int,
    ring_blocks: int = 2**24,
    logit_rows: Sequence[int] | None = None,
    device: str = "cpu",
) -> Batch:
    """The Batch of these sequences; logits are wanted for every token unless `logit_rows` says.

    No logprobs of prompt tokens are wanted.
    """
    num_new = tuple(len(sequence.token_ids) for sequence in sequences)
    rows = range(sum(num_new)) if logit_rows is None else logit_rows
    positions = [
        range(sequence.start, sequence.start + n)
        for sequence, n in zip(sequences, num_new, strict=True)
    ]
    kept = [own[-ring_blocks * block_size :] for own in positions]
    slots = [
        sequence.block_table[position // block_size % ring_blocks] * block_size
        + position % block_size
        for sequence, last in zip(sequences, kept, strict=True)
        for position in last
    ]
    cu_seqlens = tuple(accumulate(num_new, initial=0))
    write_rows = [
        row
        for stop, last in zip(cu_seqlens[1:], kept, strict=True)
        for row in range(stop - len(last), stop)
    ]

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        token_ids=tensor([token for sequence in sequences for token in sequence.token_ids]),
        positions=tensor([position for own in positions for position in own]),
        slot_mapping=tensor(slots),
        logit_rows=tensor(list(rows)),
        target_rows=tensor([]),
        targets=tensor([]),
        block_tables=tuple(sequence.block_table for sequence in sequences),
        num_new_tokens=num_new,
        context_lens=tuple(own.stop for own in positions),
        prompt_lens=tuple(
            sequence.num_prompt_tokens or own.stop
            for sequence, own in zip(sequences, positions, strict=True)
        ),
        cu_seqlens=cu_seqlens,
        block_size=block_size,
        ring_blocks=ring_blocks,
        write_rows=None if len(write_rows) == sum(num_new) else tensor(write_rows),
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
