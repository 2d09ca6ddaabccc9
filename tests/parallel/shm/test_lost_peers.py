"""What a rank is told whose peer is killed, stopped, gone or at odds while it waits; closing."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe

import pytest
import torch

from llama.errors import LlamaError, PeerLostError, RankMismatchError, RankTimeoutError
from llama.parallel.shm import ShmCommunicator
from tests.helpers.ranks import RankDied, RankInfo, run_ranks
from tests.helpers.shm import both

SIDES = pytest.mark.parametrize("native", [(), (0, 1)])
OPS = ("all_reduce", "all_reduce_async", "all_gather", "gather", "broadcast", "barrier", "recv")
BIG = 2_000_000


def call(shm: ShmCommunicator, op: str) -> None:
    x = torch.ones(BIG if op == "send" else 100)
    if op == "barrier":
        shm.barrier()
    elif op == "all_reduce_async":
        shm.all_reduce_async(x).wait()
    elif op == "broadcast":
        shm.broadcast(x, src=1)
    else:
        getattr(shm, op)(x, 1) if op in ("send", "recv") else getattr(shm, op)(x)


def lose(info: RankInfo, native: tuple[int, ...], op: str) -> None:
    shm, _ = both(info, native)
    if info.rank == 1:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    call(shm, op)


@SIDES
@pytest.mark.parametrize("op", ["all_reduce", "send", "recv"])
def test_a_killed_peer_is_lost(native: tuple[int, ...], op: str) -> None:
    error, died = run_ranks(lose, 2, native, op, expect_error=True)
    assert isinstance(died, RankDied)
    assert isinstance(error, PeerLostError)
    name = {"recv": "receive"}.get(op, op)
    assert str(error).startswith(f"tp {name} with rank 1: a rank is gone (rank 1, pid ")


def hang_up(info: RankInfo, native: tuple[int, ...], op: str) -> str:
    shm, gloo = both(info, native)
    if info.rank == 1:
        time.sleep(0.1)
        shm.close()
        shm.close()
        with pytest.raises(LlamaError, match="the tp axis was closed"):
            shm.barrier()
        gloo.barrier()
        return ""
    with pytest.raises(PeerLostError, match=r"a rank is gone \(rank 1 hung up\)") as caught:
        call(shm, op)
    with pytest.raises(LlamaError, match="out of service since its"):
        shm.barrier()
    gloo.barrier()
    return str(caught.value)


@SIDES
@pytest.mark.parametrize("op", ["all_gather", "recv", "send"])
def test_a_peer_that_hangs_up_is_lost(native: tuple[int, ...], op: str) -> None:
    message, _ = run_ranks(hang_up, 2, native, op)
    assert message.startswith("tp ")


def stop(info: RankInfo, native: tuple[int, ...], op: str) -> str:
    """Rank 1 tells its pid and is stopped; nobody can know whether it goes on some day."""
    shm, gloo = both(info, native, timeout_s=0.5)
    pid = int(gloo.broadcast(torch.tensor([os.getpid()]), src=1))
    if info.rank == 1:
        os.kill(pid, signal.SIGSTOP)
        gloo.barrier()
        return ""
    time.sleep(0.1)
    with pytest.raises(RankTimeoutError) as caught:
        call(shm, op)
    os.kill(pid, signal.SIGCONT)
    gloo.barrier()
    return str(caught.value)


@SIDES
@pytest.mark.parametrize(
    "op", [*OPS[:1], *(pytest.param(o, marks=pytest.mark.nightly) for o in OPS[1:])]
)
def test_a_stopped_peer_is_a_timeout(native: tuple[int, ...], op: str) -> None:
    message, _ = run_ranks(stop, 2, native, op)
    assert "no answer in time (waited 0.5 s for rank 1)" in message


def say_before_leaving(info: RankInfo, native: tuple[int, ...]) -> list[float]:
    shm, gloo = both(info, native)
    if info.rank == 1:
        shm.send(torch.tensor([1.0, 2.0]), 0)
        shm.broadcast(torch.tensor([3.0]), src=1)
        shm.close()
    gloo.barrier()
    if info.rank == 1:
        return []
    found = shm.recv(torch.zeros(2), 1).tolist()
    return [*found, *shm.broadcast(torch.zeros(1), src=1).tolist()]


@SIDES
def test_what_was_said_before_leaving_arrives(native: tuple[int, ...]) -> None:
    assert run_ranks(say_before_leaving, 2, native)[0] == [1.0, 2.0, 3.0]


def differ(info: RankInfo, native: tuple[int, ...], kind: str) -> None:
    shm, gloo = both(info, native)
    if kind == "async":
        if info.rank == 0:
            gloo.barrier()  # then rank 1 has begun: this rank sees at once that they differ
        work = shm.all_reduce_async(torch.zeros(4 + info.rank))
        if info.rank == 1:
            gloo.barrier()
        work.wait()
    elif kind == "size":
        shm.all_reduce(torch.zeros(4 + info.rank))
    elif kind == "op":
        shm.barrier() if info.rank else shm.all_reduce(torch.zeros(4))
    elif info.rank:
        shm.send(torch.zeros(4), 0)
        shm.barrier()
    else:
        shm.recv(torch.zeros(4, dtype=torch.int32), 1)


@pytest.mark.parametrize("native", [(), (0, 1), (1,)])
@pytest.mark.parametrize("kind", ["size", "op", "async"])
def test_different_calls_are_a_mismatch(native: tuple[int, ...], kind: str) -> None:
    for error in run_ranks(differ, 2, native, kind, expect_error=True):
        assert isinstance(error, RankMismatchError)
        assert "rank 0 called all_reduce of 16 bytes of torch.float32; rank 1 called" in str(error)


@SIDES
def test_a_message_of_another_dtype_is_a_mismatch(native: tuple[int, ...]) -> None:
    error, _ = run_ranks(differ, 2, native, "message", expect_error=True)
    assert isinstance(error, RankMismatchError)
    assert "expected a message of 16 bytes of torch.int32" in str(error)
    assert "it sent a message of 16 bytes of torch.float32" in str(error)


def close_from_another_thread(info: RankInfo, native: tuple[int, ...]) -> None:
    shm, gloo = both(info, native)
    if info.rank == 0:
        threading.Timer(0.1, shm.close).start()
        with pytest.raises(LlamaError, match=r"closed during all_reduce|was closed"):
            shm.all_reduce(torch.zeros(3))
    gloo.barrier()
    shm.close()


@SIDES
def test_closing_ends_a_wait_of_this_rank(native: tuple[int, ...]) -> None:
    run_ranks(close_from_another_thread, 2, native)


def fork(info: RankInfo, native: tuple[int, ...]) -> None:
    """The child inherits the memory and the communicator, and disturbs nobody with either."""
    shm, gloo = both(info, native)
    ours, theirs = Pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            try:
                shm.all_reduce(torch.ones(1))
            except LlamaError as error:
                theirs.send(str(error))
            shm.close()
        os._exit(0)
    try:
        assert ours.poll(20)
        assert "not to a fork" in ours.recv()
    finally:
        os.waitpid(child, 0)
    gloo.barrier()
    assert shm.all_reduce(torch.ones(1)).item() == 2.0


@SIDES
def test_a_forked_child_is_no_rank(native: tuple[int, ...]) -> None:
    run_ranks(fork, 2, native)
