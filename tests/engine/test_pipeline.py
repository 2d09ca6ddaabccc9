"""Plans and results travel the ring in order, whole, and without anyone waiting to send."""

from __future__ import annotations

import pytest

from llama.engine.pipeline import PlanRing
from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence, SequenceResult, StepResult
from llama.engine.sequence import TokenLogprob
from llama.parallel.context import ParallelContext
from llama.parallel.mailbox import FRAME_SIZE
from tests.helpers.ranks import run_layout


def plan(number: int, n_tokens: int) -> BatchPlan:
    draw = DrawParams(temperature=0.1 * number, top_p=0.9, top_k=3, seed=-number, step=number)
    table = tuple(range(0, 2 * n_tokens, 2))  # no runs: the longest encoding
    tokens = tuple(range(number, number + n_tokens))
    return BatchPlan((PlannedSequence(number, tokens, 5, 5, table, True, draw),))


def result(number: int, n_sequences: int) -> StepResult:
    logprob = TokenLogprob(number, -0.5, ((number, -0.5), (7, -1.5)))
    return StepResult((SequenceResult(number, logprob),) * n_sequences)


PLANS = [plan(1, 1), plan(2, 4 * FRAME_SIZE), plan(3, 2), plan(4, FRAME_SIZE)]
RESULTS = [result(1, 1), result(2, 300), result(3, 1), result(4, 200)]


def travel(context: ParallelContext) -> tuple[bool, list[BatchPlan], list[StepResult]]:
    """Two plans are under way at a time. Whether this rank leads, and what reached it."""
    ring = PlanRing(context)
    samples = context.is_last_stage and context.tp.rank == 0
    plans: list[BatchPlan] = []
    results: list[StepResult] = []
    if context.is_leader:
        for number, announced in enumerate(PLANS):
            ring.announce(announced)
            if samples:
                ring.answer(RESULTS[number])
            if number:
                results.append(ring.collect())
        results.append(ring.collect())
        ring.announce(BatchPlan.STOP)
    else:
        while not (arrived := ring.next_plan()).stop:
            plans.append(arrived)
            if samples:
                ring.answer(RESULTS[len(plans) - 1])
    ring.flush()
    return context.is_leader, plans, results


@pytest.mark.parametrize(
    ("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 2, 2)]
)
def test_plans_arrive_everywhere_and_results_at_the_leader(tp: int, pp: int, dp: int) -> None:
    assert len(PLANS[1].encode()) > FRAME_SIZE and len(RESULTS[1].encode()) > FRAME_SIZE
    ranks = run_layout(travel, tp=tp, pp=pp, dp=dp)
    assert sum(leads for leads, _, _ in ranks) == dp
    for leads, plans, results in ranks:
        assert plans == ([] if leads else PLANS)
        assert results == (RESULTS if leads else [])
