"""From a plan's host integers to one step's device tensors. Knows no model and no scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import torch

from llama.engine.plan import BatchPlan, PlannedSequence
from llama.ops.batch import Batch


def build_batch(
    plan: BatchPlan,
    *,
    block_size: int,
    ring_blocks: int,
    device: torch.device,
    all_logits: bool = False,
) -> Batch:
    """The Batch of `plan` on `device`, for sequences of at most `ring_blocks` blocks.

    Logits are wanted for the last token of every sequence that samples, or with `all_logits` for
    every new token. Rows and targets are in plan order.
    """
    sequences = plan.sequences
    num_new_tokens = tuple(len(sequence.token_ids) for sequence in sequences)
    cu_seqlens = tuple(accumulate(num_new_tokens, initial=0))
    logit_rows, target_rows = _wanted_rows(sequences, cu_seqlens)
    if all_logits:
        logit_rows = list(range(cu_seqlens[-1]))
    write_rows, slots = _kept(sequences, cu_seqlens, block_size=block_size, ring_blocks=ring_blocks)

    def tensor(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        token_ids=tensor(list(chain.from_iterable(s.token_ids for s in sequences))),
        positions=tensor(list(chain.from_iterable(_positions(s) for s in sequences))),
        slot_mapping=tensor(slots),
        logit_rows=tensor(logit_rows),
        target_rows=tensor(target_rows),
        targets=tensor(list(chain.from_iterable(s.targets for s in sequences))),
        block_tables=tuple(s.block_table for s in sequences),
        num_new_tokens=num_new_tokens,
        context_lens=tuple(s.start + n for s, n in zip(sequences, num_new_tokens, strict=True)),
        prompt_lens=tuple(s.num_prompt_tokens for s in sequences),
        cu_seqlens=cu_seqlens,
        block_size=block_size,
        ring_blocks=ring_blocks,
        write_rows=None if len(write_rows) == cu_seqlens[-1] else tensor(write_rows),
    )


def _positions(sequence: PlannedSequence) -> range:
    return range(sequence.start, sequence.start + len(sequence.token_ids))


def _wanted_rows(
    sequences: Sequence[PlannedSequence], cu_seqlens: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Rows that a token is sampled from, and rows whose next token is scored."""
    logit_rows: list[int] = []
    target_rows: list[int] = []
    for sequence, start, stop in zip(sequences, cu_seqlens, cu_seqlens[1:], strict=False):
        target_rows.extend(range(start, start + len(sequence.targets)))
        if sequence.sample:
            logit_rows.append(stop - 1)
    return logit_rows, target_rows


def _kept(
    sequences: Sequence[PlannedSequence],
    cu_seqlens: Sequence[int],
    *,
    block_size: int,
    ring_blocks: int,
) -> tuple[list[int], list[int]]:
    """Rows whose K and V are kept, of a chunk longer than the ring the last ones, and their slots
    in the flattened cache.
    """
    rows: list[int] = []
    slots: list[int] = []
    for sequence, stop in zip(sequences, cu_seqlens[1:], strict=True):
        table = sequence.block_table
        positions = _positions(sequence)[-ring_blocks * block_size :]
        rows.extend(range(stop - len(positions), stop))
        slots.extend(
            table[position // block_size % ring_blocks] * block_size + position % block_size
            for position in positions
        )
    return rows, slots
