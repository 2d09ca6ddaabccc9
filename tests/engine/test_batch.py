"""A plan's integers become the tensors that layers read."""

from __future__ import annotations

import torch

from llama.engine.batch import build_batch
from llama.engine.plan import BatchPlan, PlannedSequence

CPU = torch.device("cpu")


def planned(
    token_ids: tuple[int, ...],
    start: int,
    table: tuple[int, ...],
    *,
    sample: bool = False,
    targets: tuple[int, ...] = (),
) -> PlannedSequence:
    return PlannedSequence(
        seq_id=0,
        token_ids=token_ids,
        start=start,
        block_table=table,
        sample=sample,
        draw=None,
        targets=targets,
    )


def test_a_ragged_mix() -> None:
    plan = BatchPlan(
        (
            planned((5, 6, 7), 3, (9, 2)),  # a chunk in the middle of a prompt
            planned((8,), 4, (1, 4), sample=True),  # decode
            planned((10, 11), 0, (3,), targets=(11, 12)),  # prompt logprobs
        )
    )
    batch = build_batch(plan, block_size=4, device=CPU)
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 10, 11]
    assert batch.positions.tolist() == [3, 4, 5, 4, 0, 1]
    assert batch.slot_mapping.tolist() == [9 * 4 + 3, 2 * 4, 2 * 4 + 1, 4 * 4, 12, 13]
    assert batch.block_tables == ((9, 2), (1, 4), (3,))
    assert batch.logit_rows.tolist() == [3, 4, 5]
    assert batch.cu_seqlens == (0, 3, 4, 6)
    assert batch.context_lens == (6, 5, 2)
    assert not batch.is_decode


def test_all_logits_wants_every_row() -> None:
    plan = BatchPlan((planned((5, 6), 0, (0,)), planned((7,), 0, (1,))))
    assert build_batch(plan, block_size=4, device=CPU).logit_rows.tolist() == []
    everything = build_batch(plan, block_size=4, device=CPU, all_logits=True)
    assert everything.logit_rows.tolist() == [0, 1, 2]


def test_one_token_each_is_decode() -> None:
    plan = BatchPlan((planned((5,), 0, (0,)), planned((7,), 9, (1, 2, 3))))
    assert build_batch(plan, block_size=4, device=CPU).is_decode
