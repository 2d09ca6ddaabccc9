"""Beats over a real store, by hand: several ranks in one process, at times that are passed in."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

from llama.errors import RankTimeoutError
from llama.parallel.liveness.failure import FailureRecord, publish_ended
from llama.parallel.liveness.heartbeat import last_beat
from llama.parallel.liveness.neighbours import Neighbours
from llama.parallel.liveness.pulse import Pulse
from llama.parallel.liveness.whereabouts import Phase
from tests.parallel.liveness.test_failure import KILLED


class Ranks:
    """The pulses of a meeting, the second of its job."""

    def __init__(self, folder: Path, size: int, *, step_timeout_s: float = 3.0) -> None:
        self.job_store: Any = FileStore(str(folder / "store"), 1)
        for rank in range(size):
            self.job_store.add(f"llama/meetings/{rank}", 2)
        store = PrefixStore("llama/2", self.job_store)
        self.records = [FailureRecord(store, rank=r, host=f"host{r}") for r in range(size)]
        self.pulses = [
            Pulse(
                record,
                store=store,
                job_store=self.job_store,
                size=size,
                timeout_s=5.0,
                step_timeout_s=step_timeout_s,
            )
            for record in self.records
        ]
        self.at_s = 0.0

    def beat(self, ranks: Sequence[int], *, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.at_s += 0.5
            for rank in ranks:
                self.pulses[rank].beat(self.at_s)


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path, 3)


def test_rank_0_sees_all_and_all_see_rank_0(ranks: Ranks) -> None:
    ranks.records[2].whereabouts.doing = "loading"
    ranks.beat([0, 1, 2], seconds=2)
    seen = [[beat.rank for beat in pulse.beats] for pulse in ranks.pulses]
    assert seen == [[0, 1, 2], [0, 1], [0, 2]]
    assert ranks.pulses[0].beats[2].where == "INIT (loading)"
    assert [record.found for record in ranks.records] == [None] * 3


def test_the_launcher_finds_the_last_beat(ranks: Ranks) -> None:
    assert last_beat(ranks.job_store, 1) is None
    ranks.beat([1], seconds=1.5)
    beat = last_beat(ranks.job_store, 1)
    assert beat is not None and (beat["rank"], beat["n"], beat["host"]) == (1, 3, "host1")


@pytest.mark.parametrize("silent", [{2}, {0}, {0, 1}])
def test_a_silent_rank_is_given_up_at_the_limit(ranks: Ranks, silent: set[int]) -> None:
    others = sorted({0, 1, 2} - silent)
    ranks.beat([0, 1, 2], seconds=2)
    ranks.beat(others, seconds=4.5)
    assert [ranks.records[rank].found for rank in others] == [None] * len(others)
    ranks.beat(others, seconds=1)
    for rank in others:
        found = ranks.records[rank].found
        assert found is not None and (found.rank, found.exit_code) == (min(silent), 75)
        assert found.error == (
            "silent for 5.0 s: no beat came (limit 5; LLAMA_HEARTBEAT_TIMEOUT_S)"
        )


@pytest.mark.parametrize(
    ("phase", "is_here", "limit_s"),
    [(Phase.IDLE, True, None), (Phase.STEP, True, 10), (Phase.IDLE, False, 10)],
)
def test_a_program_may_hold_pythons_lock(
    tmp_path: Path, phase: Phase, is_here: bool, limit_s: float | None
) -> None:
    """A process that is seen to run, or had the word when it was last heard of, is not cut off."""
    ranks = Ranks(tmp_path, 2, step_timeout_s=10)
    ranks.records[1].whereabouts.phase = phase
    if is_here:
        ranks.records[1].host = ranks.records[0].host
        ranks.pulses[0].neighbours = Neighbours({1: os.getpid()})
    ranks.beat([0, 1], seconds=1)
    ranks.beat([0], seconds=9)
    assert ranks.records[0].found is None
    ranks.beat([0], seconds=20)
    found = ranks.records[0].found
    if limit_s is None:
        assert found is None
    else:
        assert found is not None and "(limit 10; LLAMA_STEP_TIMEOUT_S)" in found.error


def test_a_short_incident_is_one_warning(ranks: Ranks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llama"):
        ranks.beat([0, 1, 2], seconds=2)
        ranks.beat([0], seconds=2.5)
        ranks.beat([0, 1, 2], seconds=2)
        ranks.beat([1, 2], seconds=2)
        ranks.beat([0, 1, 2], seconds=1)
    assert caplog.messages == [
        "ranks 1, 2 (host1, host2) were silent for 2.5 s; they are back",
        "rank 0 (host0) was silent for 2.0 s; it is back",
    ]


def test_a_rank_that_left_is_not_missed(ranks: Ranks) -> None:
    ranks.beat([0, 1, 2], seconds=2)
    ranks.pulses[2].leave()
    ranks.beat([0, 1], seconds=60)
    assert ranks.records[0].found is None and set(ranks.pulses[0].left) == {2}


def test_what_a_launcher_saw_reaches_every_rank(ranks: Ranks) -> None:
    ranks.beat([0, 1, 2], seconds=1)
    publish_ended(ranks.job_store, KILLED)
    ranks.beat([0, 1, 2], seconds=0.5)
    assert [record.found for record in ranks.records] == [KILLED] * 3


@pytest.mark.parametrize("has_left", [False, True])
def test_a_process_of_this_machine_that_is_gone(ranks: Ranks, has_left: bool) -> None:
    ranks.beat([0, 1, 2], seconds=1)
    with subprocess.Popen(["sleep", "60"]) as process:
        ranks.pulses[1].neighbours = Neighbours({2: process.pid})
        ranks.beat([1], seconds=1)
        process.kill()
    if has_left:
        ranks.pulses[2].leave()
    ranks.beat([1], seconds=0.5)
    found = ranks.records[1].found
    if has_left:
        assert found is None and set(ranks.pulses[1].left) == {2}
    else:
        assert found is not None and (found.rank, found.exit_code) == (2, 69)


@pytest.mark.parametrize("has_store", [True, False])
def test_a_neighbour_on_another_host_keeps_its_name(ranks: Ranks, has_store: bool) -> None:
    """As in containers that share the pids of their machine; and rank 2 has read no beat of it."""
    with subprocess.Popen(["sleep", "60"]) as process:
        pulse = ranks.pulses[2]
        pulse.neighbours, pulse.hosts = Neighbours({0: process.pid}), {0: "host0"}
        process.kill()
    if has_store:
        ranks.beat([2], seconds=0.5)
    else:
        pulse.look_around()
    found = ranks.records[2].found
    where = "INIT (starting)" if has_store else "UNKNOWN (its beats are gone)"
    assert found is not None and (found.rank, found.host, found.where) == (0, "host0", where)


def test_a_process_that_went_for_a_lost_peer_has_said_so(ranks: Ranks) -> None:
    ranks.beat([0, 1, 2], seconds=1)
    ranks.records[2].publish(RankTimeoutError("tp all_reduce with rank 0: no answer in time"))
    with subprocess.Popen(["sleep", "60"]) as process:
        ranks.pulses[1].neighbours = Neighbours({2: process.pid})
        process.kill()
    ranks.beat([1], seconds=0.5)
    found = ranks.records[1].found
    assert found is not None and (found.rank, found.exit_code) == (2, 75)
    assert "no answer in time" in found.error


def test_ranks_that_wait_for_one_another_end_at_the_limit_of_a_step(ranks: Ranks) -> None:
    for record in ranks.records:
        record.whereabouts.phase = Phase.STEP
        record.whereabouts.waiting_for = "tp all_reduce"
    ranks.beat([0, 1, 2], seconds=3)
    assert ranks.records[0].found is None
    ranks.records[1].whereabouts.n_done += 1
    ranks.beat([0, 1, 2], seconds=3)
    assert ranks.records[0].found is None
    ranks.beat([0, 1, 2], seconds=1.5)
    found = ranks.records[0].found
    assert found is not None and found.exit_code == 75
    assert "rank 2 (host2) waits for tp all_reduce" in found.error


def test_a_long_wait_of_rank_0_is_told_once(ranks: Ranks, caplog: pytest.LogCaptureFixture) -> None:
    at = ranks.records[0].whereabouts
    at.phase, at.doing = Phase.WAIT, "comparing settings"
    ranks.records[1].whereabouts.phase = Phase.WAIT
    with caplog.at_level(logging.WARNING, "llama"):
        ranks.beat([0, 1, 2], seconds=70)
    assert caplog.messages == [
        "comparing settings: waiting for rank 2 (host2), which is in INIT (starting)"
    ]
