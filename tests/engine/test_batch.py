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
        num_prompt_tokens=4,
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
    batch = build_batch(plan, block_size=4, ring_blocks=4, device=CPU)
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 10, 11]
    assert batch.positions.tolist() == [3, 4, 5, 4, 0, 1]
    assert batch.slot_mapping.tolist() == [9 * 4 + 3, 2 * 4, 2 * 4 + 1, 4 * 4, 12, 13]
    assert batch.block_tables == ((9, 2), (1, 4), (3,))
    assert batch.logit_rows.tolist() == [3]
    assert (batch.target_rows.tolist(), batch.targets.tolist()) == ([4, 5], [11, 12])
    assert batch.cu_seqlens == (0, 3, 4, 6)
    assert batch.context_lens == (6, 5, 2)
    assert batch.prompt_lens == (4, 4, 4)
    assert not batch.is_decode


def test_blocks_go_round_the_ring() -> None:
    plan = BatchPlan(
        (
            planned((5, 6, 7), 11, (9, 2, 4)),  # from block 2 to block 3, which lies in the first
            planned((8,), 25, (1, 5, 3), sample=True),  # block 6
        )
    )
    batch = build_batch(plan, block_size=4, ring_blocks=3, device=CPU)
    assert batch.slot_mapping.tolist() == [4 * 4 + 3, 9 * 4, 9 * 4 + 1, 1 * 4 + 1]
    assert batch.write_rows is None
    assert batch.context_lens == (14, 26)
    assert (batch.block_size, batch.ring_blocks) == (4, 3)


def test_of_a_chunk_longer_than_the_ring_only_the_last_tokens_are_kept() -> None:
    plan = BatchPlan(
        (
            planned((5, 6), 0, (7,)),
            planned(tuple(range(10, 21)), 3, (0, 2)),  # positions 3 to 13, of which 6 to 13 fit
            planned((8,), 25, (1, 5), sample=True),
        )
    )
    batch = build_batch(plan, block_size=4, ring_blocks=2, device=CPU)
    assert batch.write_rows is not None
    assert batch.write_rows.tolist() == [0, 1, *range(5, 13), 13]
    ring = [8 + 6 - 4, 8 + 7 - 4, 0, 1, 2, 3, 8, 9]
    assert batch.slot_mapping.tolist() == [28, 29, *ring, 1 * 4 + 1]
    assert batch.positions.tolist() == [0, 1, *range(3, 14), 25]
    exact = BatchPlan((planned(tuple(range(8)), 4, (0, 2)),))
    assert build_batch(exact, block_size=4, ring_blocks=2, device=CPU).write_rows is None


def test_all_logits_wants_every_row() -> None:
    plan = BatchPlan((planned((5, 6), 0, (0,)), planned((7,), 0, (1,))))
    assert build_batch(plan, block_size=4, ring_blocks=4, device=CPU).logit_rows.tolist() == []
    everything = build_batch(plan, block_size=4, ring_blocks=4, device=CPU, all_logits=True)
    assert everything.logit_rows.tolist() == [0, 1, 2]


def test_one_token_each_is_decode() -> None:
    plan = BatchPlan((planned((5,), 0, (0,)), planned((7,), 9, (1, 2, 3))))
    assert build_batch(plan, block_size=4, ring_blocks=4, device=CPU).is_decode
