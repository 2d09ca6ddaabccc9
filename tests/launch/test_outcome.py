"""From the ends of ranks to the one that is reported, and one exit status."""

from __future__ import annotations

import signal

import pytest

from launch.outcome import Outcome, RankEnd, describe, first_cause


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([(0, -15, 5), (1, 65, 5)], 1),  # ended with the job
        ([(0, 69, 5), (1, 65, 5)], 1),  # only lost its peer
        ([(0, 69, 4), (1, -15, 5)], 0),  # nothing but consequences: the first of them
        ([(2, 70, 6), (1, 70, 5), (3, 70, 5)], 1),  # the first in time, then by rank
        ([(0, -15, 5), (1, -9, 5)], 1),
    ],
)
def test_first_cause(failures: list[tuple[int, int, int]], expected: int) -> None:
    assert first_cause([RankEnd(*failure) for failure in failures]).rank == expected


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        (65, "rank 3 (box) exited with 65 (CheckpointError)"),
        (70, "rank 3 (box) exited with 70 (unexpected error)"),
        (1, "rank 3 (box) exited with 1"),
        (-11, "rank 3 (box) was killed by SIGSEGV"),
        (-40, "rank 3 (box) was killed by signal 40"),
        (-9, "rank 3 (box) was killed by SIGKILL; if nobody did that, it ran out of memory"),
    ],
)
def test_describe(exit_code: int, expected: str) -> None:
    assert describe(RankEnd(3, exit_code, 0), host="box") == expected


def test_what_the_launcher_did_itself_is_no_cause() -> None:
    ends = (RankEnd(0, -9, 5.0, was_told=True), RankEnd(1, 69, 5.1))
    assert first_cause(ends).rank == 1


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(), 0),
        (Outcome((RankEnd(0, 0, 1.0), RankEnd(1, 0, 2.0))), 0),
        (Outcome((RankEnd(0, 69, 2.0), RankEnd(1, 65, 1.0))), 65),
        (Outcome((RankEnd(0, -9, 1.0),)), 137),
        (Outcome((RankEnd(0, 0, 1.0),), lost="node 1 is silent"), 69),
        (Outcome((RankEnd(0, 0, 1.0),), stopped_by=signal.SIGTERM), 143),
        (Outcome((RankEnd(0, 70, 1.0),), stopped_by=signal.SIGINT), 130),
    ],
)
def test_exit_code(outcome: Outcome, expected: int) -> None:
    assert outcome.exit_code == expected
