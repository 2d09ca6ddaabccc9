"""When a rank must end, told by seconds that the test passes in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama.errors import PeerLostError
from llama.parallel.liveness.failure import Failure, FailureRecord
from llama.parallel.liveness.guard import TICK_S, Guard, Limits
from llama.parallel.liveness.whereabouts import Phase
from tests.parallel.liveness.test_beat import BEAT

LIMITS = Limits(load_s=20.0, step_s=10.0, heartbeat_s=5.0)
ELSEWHERE = Failure(
    rank=1, host="hostB", pid=77, phase="STEP", doing="generate", step=4, layer=3, file=None,
    error="RuntimeError: boom", exit_code=70,
)  # fmt: skip


class Watched:
    """A guard, and a rank 0 to watch over. The store answers unless told otherwise."""

    def __init__(self, phase: Phase = Phase.IDLE) -> None:
        self.record = FailureRecord(None, rank=0, host="hostA")
        self.record.whereabouts.phase = phase
        self.guard = Guard(self.record, LIMITS, store_place="the job's store at there (in rank 2)")
        self.answers = 0

    def pass_s(
        self, seconds: float, *, answers: bool = True, step: bool = False, **facts: Any
    ) -> Failure | None:
        """The verdict after that time, or as soon as there is one."""
        facts = {"problem": None, "left": {}, "busy_s": 0.0, **facts}
        for _ in range(round(seconds / TICK_S)):
            self.answers += answers
            self.record.whereabouts.n_done += step
            verdict = self.guard.judge(TICK_S, n_answers=self.answers, **facts)
            if verdict is not None:
                return verdict
        return None


@pytest.mark.parametrize("phase", list(Phase))
def test_where_all_is_well_nothing_ends(phase: Phase) -> None:
    watched = Watched(phase)
    assert watched.pass_s(60, step=True) is None


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.WAIT, Phase.INIT])
def test_who_waits_for_the_program_or_for_others_may_wait(phase: Phase) -> None:
    assert Watched(phase).pass_s(600) is None


def test_a_record_is_adopted_after_the_main_thread_had_its_time() -> None:
    watched = Watched()
    watched.record.found = ELSEWHERE
    assert watched.pass_s(1.0) is None
    assert watched.pass_s(0.5) is ELSEWHERE


def test_a_program_that_was_told_has_the_word() -> None:
    watched = Watched(Phase.STEP)
    watched.record.found = ELSEWHERE
    watched.record.explain(PeerLostError("gone"))
    assert watched.pass_s(60) is None


def test_a_rank_that_hung_up_matters_to_a_rank_in_a_call() -> None:
    hung_up = replace(ELSEWHERE, is_leaving=False)
    watched = Watched(Phase.IDLE)
    watched.record.found = hung_up
    assert watched.pass_s(60) is None
    watched.record.whereabouts.phase = Phase.WAIT
    assert watched.pass_s(2.0) is None
    assert watched.pass_s(0.5) is hung_up


def test_a_consequence_stands_for_a_cause_that_nobody_knows() -> None:
    watched = Watched(Phase.STEP)
    watched.record.consequence = ELSEWHERE
    assert watched.pass_s(2.0, step=True) is None
    assert watched.pass_s(0.5, step=True) is ELSEWHERE


def test_computing_without_progress_ends_at_the_limit() -> None:
    watched = Watched(Phase.STEP)
    watched.record.whereabouts.doing = "generate"
    verdict = watched.pass_s(12)
    assert verdict is not None and (verdict.rank, verdict.exit_code) == (0, 75)
    assert verdict.line.startswith("rank 0 (hostA, pid ")
    assert verdict.line.endswith(
        " in STEP (generate): computing for 10.0 s without finishing a layer (limit 10; "
        "LLAMA_STEP_TIMEOUT_S)"
    )


def test_a_busy_core_gets_ten_times_as_long() -> None:
    watched = Watched(Phase.STEP)
    assert watched.pass_s(90, busy_s=TICK_S) is None
    verdict = watched.pass_s(12, busy_s=TICK_S)
    assert verdict is not None and verdict.error.startswith("computing for 100.")
    assert "(limit 10, 10 times that on a busy core; LLAMA_STEP_TIMEOUT_S)" in verdict.error
    on_gpu = Watched(Phase.STEP)
    on_gpu.guard.computes_on_cpu = False
    verdict = on_gpu.pass_s(12, busy_s=TICK_S)
    assert verdict is not None and verdict.error.startswith(
        "computing for 10.0 s without finishing a layer, or its GPU waits for another rank's (limit"
    )


def test_who_waits_for_another_rank_is_not_stuck() -> None:
    watched = Watched(Phase.STEP)
    watched.record.whereabouts.waiting_for = "pp receive with rank 1"
    assert watched.pass_s(60) is None


def test_a_load_has_a_limit_of_its_own() -> None:
    watched = Watched(Phase.LOAD)
    assert watched.pass_s(20) is None
    verdict = watched.pass_s(2)
    assert verdict is not None and "without finishing a tensor (limit 20; " in verdict.error


def test_a_store_that_does_not_answer() -> None:
    verdict = Watched(Phase.IDLE).pass_s(8, answers=False)
    assert verdict is not None and verdict.exit_code == 75
    assert verdict.error.startswith(
        "the job's store at there (in rank 2) has not answered for 5.0 s (limit 5; "
    )


def test_who_hosts_the_store_is_named_when_it_does_not_answer() -> None:
    watched = Watched(Phase.STEP)
    place = "the job's store at there (in rank 1)"
    watched.guard = Guard(watched.record, LIMITS, store_place=place, store_host=lambda: BEAT)
    verdict = watched.pass_s(8, answers=False)
    assert verdict is not None and (verdict.rank, verdict.host, verdict.step) == (1, "hostB", 41)


def test_a_store_that_is_gone_matters_to_a_rank_in_a_call() -> None:
    watched = Watched(Phase.IDLE)
    assert watched.pass_s(60, answers=False, problem="broken pipe") is None
    watched.record.whereabouts.phase = Phase.WAIT
    verdict = watched.pass_s(4, answers=False, problem="broken pipe")
    assert verdict is not None and verdict.exit_code == 69
    assert "is gone" in verdict.error and "(broken pipe)" in verdict.error


def test_a_rank_that_left_is_missed_by_who_waits() -> None:
    watched = Watched(Phase.IDLE)
    assert watched.pass_s(60, left={1: BEAT}) is None
    watched.record.whereabouts.phase = Phase.STEP
    assert watched.pass_s(8, left={1: BEAT}) is None, "it computes"
    watched.record.whereabouts.waiting_for = "tp all_reduce with rank 1"
    assert watched.pass_s(30, left={1: BEAT}, step=True) is None, "it gets what it waits for"
    verdict = watched.pass_s(4, left={1: BEAT})
    assert verdict is not None and (verdict.rank, verdict.host, verdict.exit_code) == (
        1, "hostB", 69,
    )  # fmt: skip
    assert verdict.error.startswith("left (exit 0?) while rank 0 was in STEP (")


def test_another_replica_may_be_done_before_this_one() -> None:
    watched = Watched(Phase.STEP)
    watched.guard.partners = (0, 2)
    watched.record.whereabouts.waiting_for = "pp receive with rank 2"
    watched.record.whereabouts.awaited = (0, 2)
    assert watched.pass_s(60, left={1: BEAT}) is None
    watched.record.whereabouts.awaited = (0, 1, 2, 3)  # all results come from all replicas
    verdict = watched.pass_s(4, left={1: BEAT})
    assert verdict is not None and verdict.rank == 1


def test_a_rank_that_left_explains_a_lost_connection_at_once() -> None:
    watched = Watched(Phase.STEP)
    watched.record.is_told = True
    assert watched.pass_s(TICK_S, left={1: BEAT}) is None
    found = watched.record.found
    assert found is not None and found.rank == 1
