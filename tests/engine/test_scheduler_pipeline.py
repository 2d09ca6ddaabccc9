"""Several plans in flight: no stage of a pipeline runs dry, and none gets all the work."""

from __future__ import annotations

from typing import Any

import pytest

from llama.engine.plan import BatchPlan
from llama.engine.shares import MIN_CHUNK_TOKENS
from tests.helpers.replica import Replica


def pipeline(max_in_flight: int = 2, **config: Any) -> Replica:
    sizes = {"max_seq_len": 600, "max_batch_size": 32, "num_blocks": 4096, **config}
    return Replica(max_in_flight=max_in_flight, **sizes)


def fill(replica: Replica) -> list[BatchPlan]:
    """Every plan in flight, when no more can be."""
    while replica.schedule() is not None:
        pass
    return [plan for plan, _ in replica.out]


def n_decodes(plan: BatchPlan) -> int:
    return sum(planned.sample and len(planned.token_ids) == 1 for planned in plan.sequences)


def n_prompt_tokens(plan: BatchPlan) -> int:
    return plan.num_tokens - n_decodes(plan)


@pytest.mark.parametrize("max_in_flight", [2, 3, 4])
def test_long_prompts_come_in_equal_chunks_that_fill_the_ring(max_in_flight: int) -> None:
    replica = pipeline(max_in_flight)
    for _ in range(8):
        replica.add(512, max_tokens=1)
    n_tokens = 8 * 512
    while n_tokens > max_in_flight * MIN_CHUNK_TOKENS:
        plans = fill(replica)
        assert [plan.num_tokens for plan in plans] == [MIN_CHUNK_TOKENS] * max_in_flight
        n_tokens -= plans[0].num_tokens
        replica.update()
    replica.finish_all()
    replica.check_outputs()


def test_decodes_are_dealt_to_all_plans_beside_a_long_prompt() -> None:
    """Else one plan would have all prompts, and the decodes' own would wait behind it."""
    replica = pipeline()
    for _ in range(4):
        replica.add(4, max_tokens=60, ignore_eos=True)
    fill(replica)
    replica.update()
    replica.update()
    for _ in range(4):
        replica.add(512, max_tokens=60, ignore_eos=True)
    for _ in range(4):
        for plan in fill(replica):
            assert (n_decodes(plan), n_prompt_tokens(plan)) == (2, MIN_CHUNK_TOKENS)
        replica.update()
    replica.finish_all()
    replica.check_outputs()


@pytest.mark.parametrize(("max_in_flight", "n_requests"), [(2, 4), (2, 8), (3, 9), (4, 10)])
def test_newcomers_and_leavers_leave_the_plans_even(max_in_flight: int, n_requests: int) -> None:
    replica = pipeline(max_in_flight)
    for number in range(n_requests):  # the first half is done early
        max_tokens = 3 if number < n_requests // 2 else 80
        replica.add(20, max_tokens=max_tokens, ignore_eos=True)
    for turn in range(60):
        if turn == 20:
            for _ in range(n_requests):
                replica.add(20, max_tokens=80, ignore_eos=True)
        sizes = [len(plan.sequences) for plan in fill(replica)]
        if turn % 20 > 2 * max_in_flight + 3:  # whoever was in flight together is back
            assert len(sizes) == min(max_in_flight, len(replica.scheduler.running))
            assert max(sizes) - min(sizes) <= 1, f"turn {turn}"
        replica.update()
    replica.finish_all()
    replica.check_outputs()


def test_one_stage_alone_mixes_as_much_as_fits() -> None:
    replica = pipeline(1)
    for _ in range(4):
        replica.add(500, max_tokens=2)
    assert [plan.num_tokens for plan in fill(replica)] == [2000]
