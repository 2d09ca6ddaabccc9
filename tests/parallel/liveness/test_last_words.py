"""The end of a process, in processes that end."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama.parallel.liveness.last_words import LastWords
from llama.parallel.liveness.postmortem import Postmortem
from tests.helpers.ranks import RankDied, RankInfo, run_ranks
from tests.parallel.liveness.test_failure import KILLED

BOOM = replace(KILLED, error="RuntimeError: boom", traceback="Traceback:\n  here\n")


def speak(info: RankInfo, folder: Path, host: str) -> None:
    sys.__stderr__ = open(folder / f"{info.rank}", "w")  # type: ignore[misc]  # noqa: SIM115
    LastWords(rank=info.rank, host=host).speak(["gone", "for good"], exit_code=71, failure=BOOM)


@pytest.mark.parametrize("host", ["hostA", "hostB"])
def test_rank_0_shows_the_traceback_of_another_host(tmp_path: Path, host: str) -> None:
    died = run_ranks(speak, 2, tmp_path, host, expect_error=True)
    assert [error.exit_code for error in died if isinstance(error, RankDied)] == [71, 71]
    own = "[rank {0} {1}] gone\n[rank {0} {1}] for good\n"
    shown = "[rank 0 hostA] hostB: Traceback:\n[rank 0 hostA] hostB:   here\n"
    assert (tmp_path / "0").read_text() == own.format(0, host) + (host == "hostA") * shown
    assert (tmp_path / "1").read_text() == own.format(1, host)


def fork_a_failing_child(info: RankInfo, folder: Path) -> int:
    words = LastWords(rank=info.rank, host="hostA")
    words.postmortem = Postmortem(folder, list)
    child = os.fork()
    if not child:
        words.speak(["gone"], exit_code=71, failure=BOOM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_end_of_a_forked_child_is_not_the_jobs(tmp_path: Path) -> None:
    assert run_ranks(fork_a_failing_child, 1, tmp_path) == [71]
    assert not list(tmp_path.iterdir())


def test_one_thread_has_the_word() -> None:
    words = LastWords(rank=0, host="hostA")
    assert words.claim()
    assert not words.claim()
