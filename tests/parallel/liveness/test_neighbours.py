"""Processes of this machine that have ended, told from those that live, sleep or are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from llama.parallel.liveness.neighbours import Neighbours, is_stopped, pid_space

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_process_is_told_once(sleeper: subprocess.Popen[bytes]) -> None:
    neighbours = Neighbours({0: os.getpid(), 3: sleeper.pid})
    assert neighbours.take_ended() == {} and set(neighbours.watched) == {0, 3}
    sleeper.kill()
    found: dict[int, int] = {}
    wait_for(lambda: found.update(neighbours.take_ended()) or found)
    assert found == {3: sleeper.pid}, "although it is a zombie until somebody waits for it"
    assert neighbours.take_ended() == {} and set(neighbours.watched) == {0}


def test_a_stopped_process_has_not_ended(sleeper: subprocess.Popen[bytes]) -> None:
    neighbours = Neighbours({3: sleeper.pid})
    assert not is_stopped(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    wait_for(lambda: is_stopped(sleeper.pid))
    assert neighbours.take_ended() == {}


def test_what_is_not_to_be_seen_is_not_watched(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    neighbours = Neighbours({3: sleeper.pid})
    assert neighbours.take_ended() == {} and not list(neighbours.watched)
    assert not is_stopped(sleeper.pid)


def test_processes_that_see_each_other_have_one_pid_space() -> None:
    code = "from llama.parallel.liveness.neighbours import pid_space; print(pid_space())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == pid_space() != ""
