"""Messages over shared memory that are larger than what can be under way; and nobody waits."""

from __future__ import annotations

import pytest
import torch

from llama.parallel.mailbox import Mailbox
from tests.helpers.ranks import RankInfo, run_ranks
from tests.helpers.shm import both

SIDES = pytest.mark.parametrize("native", [(), (0, 1), (1,)])
N = 700_001  # of int64: five rings


def cross(info: RankInfo, native: tuple[int, ...]) -> None:
    """Everybody sends to everybody before anybody receives; large and small ones keep order."""
    shm, _ = both(info, native)
    others = [rank for rank in range(shm.size) if rank != shm.rank]
    sizes = (3, N, 0, 5, N + 1)
    works = [
        shm.isend(torch.full((n,), 10 * shm.rank + i), dst)
        for i, n in enumerate(sizes)
        for dst in others
    ]
    shm.barrier()
    for src in reversed(others):
        for i, n in enumerate(sizes):
            found = shm.recv(torch.empty(n, dtype=torch.int64), src)
            assert torch.equal(found, torch.full((n,), 10 * src + i))
    for work in works:
        work.wait()
    shm.barrier()
    shm.close()


@SIDES
def test_sending_never_waits_for_the_receiver(native: tuple[int, ...]) -> None:
    run_ranks(cross, 2, native)


def test_nor_do_messages_wait_for_those_to_another_rank() -> None:
    run_ranks(cross, 3, (0, 2))


def post(info: RankInfo, native: tuple[int, ...]) -> None:
    shm, _ = both(info, native)
    box = Mailbox(shm)
    messages = [list(range(n)) for n in (0, 5, 1023, 1024, 200_000, 1)]
    if shm.rank == 0:
        for message in messages:
            box.post(message, 1)
        box.flush()
    else:
        assert [box.receive(0) for _ in messages] == messages
    shm.barrier()


@SIDES
def test_a_mailbox_rides_on_it(native: tuple[int, ...]) -> None:
    run_ranks(post, 2, native)


def wrap(info: RankInfo, native: tuple[int, ...]) -> None:
    """Odd sizes around the end of a small ring, many times."""
    shm, _ = both(info, native, ring_bytes=4096)
    for i in range(400):
        n = (i * 37) % 1500 if i % 50 else 9001
        x = (torch.arange(n) + i).to(torch.uint8)
        if shm.rank == 0:
            shm.send(x, 1)
        else:
            assert torch.equal(shm.recv(torch.empty_like(x), 0), x)
    shm.barrier()


@SIDES
def test_odd_sizes_around_the_end_of_a_ring(native: tuple[int, ...]) -> None:
    run_ranks(wrap, 2, native)
