"""Who is missing, in words, and how many threads each of those who came may run."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from llama.errors import RankTimeoutError
from llama.parallel.meeting.roll_call import Presence, roll_call, share_of_cores


def test_all_learn_of_all() -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(roll_call, store, rank=rank, size=3, timeout_s=30) for rank in (2, 0, 1)
        ]
        for call in calls:
            assert [(p.host, p.pid) for p in call.result()] == [
                (socket.gethostname(), os.getpid())
            ] * 3


def test_the_missing_are_named_on_every_rank_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    # they hear of it from rank 0
    monkeypatch.setattr("llama.parallel.meeting.roll_call.LISTENING_S", 60)
    store = HashStore()
    errors: list[str] = []

    def come(rank: int) -> None:
        with pytest.raises(RankTimeoutError) as caught:
            roll_call(store, rank=rank, size=9, timeout_s=0.5)
        errors.append(str(caught.value))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3 and len(set(errors)) == 1
    assert errors[0].startswith(
        "ranks 2-4, 6-8 did not start within 0.5 s "
        f"(3 of 9 did: ranks 0, 1, 5 on {socket.gethostname()}); look at "
    )


def test_without_rank_0_the_others_name_it_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama.parallel.meeting.roll_call.LISTENING_S", 0.1)
    with pytest.raises(RankTimeoutError, match=r"rank 0 did not start within 0.1 s \(1 of 2 did"):
        roll_call(HashStore(), rank=1, size=2, timeout_s=0.1)


def test_rank_0_says_whom_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llama.parallel.meeting.roll_call.REMINDER_S", 0.2)
    store = HashStore()

    def come_late() -> None:
        time.sleep(1)
        roll_call(store, rank=1, size=2, timeout_s=30)

    late = threading.Thread(target=come_late)
    late.start()
    with caplog.at_level(logging.WARNING, logger="llama"):
        roll_call(store, rank=0, size=2, timeout_s=30)
    late.join(30)
    assert caplog.messages[0].startswith("waiting for rank 1 to start (")


@pytest.mark.parametrize(
    ("cores", "shares"),
    [
        ([[0, 1, 2, 3]] * 2, [2, 2]),  # nobody bound them
        ([[0, 1], [2, 3]], [2, 2]),  # srun bound each task to cores of its own
        ([[0]] * 3, [1, 1, 1]),
        ([[0, 1, 2, 3], [0, 1], [2, 3]], [1, 1, 1]),
        ([list(range(64))] * 8, [8] * 8),
    ],
)
def test_shares_of_cores(cores: list[list[int]], shares: list[int]) -> None:
    presences = [Presence("a", pid, mine) for pid, mine in enumerate(cores)]
    elsewhere = Presence("b", 0, cores[0])
    ranks = range(len(presences))
    assert [share_of_cores([*presences, elsewhere], rank) for rank in ranks] == shares
    assert share_of_cores([*presences, elsewhere], len(presences)) == len(cores[0])
