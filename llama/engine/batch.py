"""From a plan's host integers to one step's device tensors. Knows no model and no scheduler."""

from __future__ import annotations

from itertools import accumulate, chain

import torch

from llama.engine.plan import BatchPlan, PlannedSequence
from llama.ops.batch import Batch


def build_batch(
    plan: BatchPlan, *, block_size: int, device: torch.device, all_logits: bool = False
) -> Batch:
    """The Batch of `plan` on `device`.

    Logits are wanted, in plan order, for every new token of a sequence with prompt targets (or of
    every sequence with `all_logits`), else for the last token of a sequence that samples, else for
    none.
    """
    sequences = plan.sequences
    num_new_tokens = tuple(len(sequence.token_ids) for sequence in sequences)
    cu_seqlens = tuple(accumulate(num_new_tokens, initial=0))
    logit_rows: list[int] = []
    for sequence, start, stop in zip(sequences, cu_seqlens, cu_seqlens[1:], strict=False):
        if all_logits or sequence.targets:
            logit_rows.extend(range(start, stop))
        elif sequence.sample:
            logit_rows.append(stop - 1)

    def tensor(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        token_ids=tensor(list(chain.from_iterable(s.token_ids for s in sequences))),
        positions=tensor(list(chain.from_iterable(_positions(s) for s in sequences))),
        slot_mapping=tensor(list(chain.from_iterable(_slots(s, block_size) for s in sequences))),
        logit_rows=tensor(logit_rows),
        block_tables=tuple(s.block_table for s in sequences),
        num_new_tokens=num_new_tokens,
        context_lens=tuple(s.start + n for s, n in zip(sequences, num_new_tokens, strict=True)),
        cu_seqlens=cu_seqlens,
        block_size=block_size,
    )


def _positions(sequence: PlannedSequence) -> range:
    return range(sequence.start, sequence.start + len(sequence.token_ids))


def _slots(sequence: PlannedSequence, block_size: int) -> list[int]:
    """Place of each new token in the flattened cache."""
    table = sequence.block_table
    return [
        table[position // block_size] * block_size + position % block_size
        for position in _positions(sequence)
    ]
