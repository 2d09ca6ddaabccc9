"""What a launcher writes for ranks that ended without a word, in a real store."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from torch.distributed import Store

from launch.announce import announce_end, announce_stop, first_failure
from launch.nodes import NodeRequest, meet_nodes
from launch.outcome import RankEnd
from llama.parallel.liveness.failure import CAUSE_KEY, ENDED_KEY, Failure
from tests.helpers.programs import wait_until

KILLED = RankEnd(1, -9, 5.0, pid=77)
OWN_WORDS = Failure(
    1, "hostB", 77, "STEP", "generate", 41, 3, None, "RuntimeError: boom", exit_code=70
)


@pytest.fixture
def store() -> Store:
    return meet_nodes(NodeRequest(), nproc=2, timeout_s=30, say=lambda line: None).store


def told(store: Store) -> Failure:
    wait_until(lambda: first_failure(store, 0) is not None, what="a record")
    found = first_failure(store, 0)
    assert found is not None
    return found


def await_announcements() -> None:
    for thread in threading.enumerate():
        if thread.name == "announce-end":
            thread.join(30)


def test_nothing_has_happened(store: Store) -> None:
    assert first_failure(store, 0) is None


def test_a_killed_rank_is_announced(store: Store) -> None:
    announce_end(store, KILLED, host="hostB")
    line = told(store).line
    assert line.startswith("rank 1 (hostB, pid 77) in INIT (starting): the process was killed by ")
    assert told(store).exit_code == 69


def test_a_stopped_launcher_is_announced(store: Store) -> None:
    announce_stop(store, signal.SIGINT, rank=2, host="hostB")
    assert told(store).line.endswith("its launcher was stopped by SIGINT")
    assert (told(store).rank, told(store).pid, told(store).exit_code) == (2, os.getpid(), 130)


def test_the_first_one_stays(store: Store) -> None:
    announce_end(store, KILLED, host="hostB")
    assert told(store).rank == 1
    announce_end(store, RankEnd(0, -15, 6.0, pid=76), host="hostB")
    await_announcements()
    assert told(store).rank == 1


def test_a_ranks_own_words_count_more(store: Store) -> None:
    for rank in (0, 1):
        store.add(f"llama/meetings/{rank}", 1)
    store.set(f"llama/1/{CAUSE_KEY}", OWN_WORDS.to_json())
    announce_end(store, RankEnd(1, 70, 5.0, pid=77), host="hostB")
    await_announcements()
    assert not store.check([ENDED_KEY])
    assert told(store) == OWN_WORDS
