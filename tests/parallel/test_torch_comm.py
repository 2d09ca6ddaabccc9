"""What a rank is told when a peer dies, is late, or makes another call, over every transport; and
tensors off the CPU.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llama.config import ParallelConfig
from llama.errors import LlamaError, PeerLostError, RankMismatchError, RankTimeoutError
from llama.parallel.comm import Communicator
from llama.parallel.context import ParallelContext, initialize
from tests.helpers.ranks import RankDied, RankInfo, run_layout, run_ranks


def call(comm: Communicator, op: str) -> None:
    x = torch.zeros(1000)
    if op in ("send", "recv"):
        getattr(comm, op)(x, 1)
    elif op == "barrier":
        comm.barrier()
    elif op == "all_reduce_async":
        comm.all_reduce_async(x).wait()
    else:
        getattr(comm, op)(x)


def lose_a_peer(info: RankInfo, op: str, debug_level: str) -> None:
    dist.set_debug_level(getattr(dist.DebugLevel, debug_level))
    info.init_process_group()
    context = initialize(ParallelConfig(tp_size=2))
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    call(context.tp, op)
    assert op == "send", "this rank went on"
    call(context.tp, "recv")  # a small message goes where a receiver may take it, alive or not


OPS = ["all_reduce", "all_reduce_async", "all_gather", "gather", "recv", "send", "barrier"]


TRANSPORTS = pytest.mark.parametrize("transport", ["shm", "gloo"])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("transport", "debug_level"),
    [
        ("shm", "OFF"),
        ("gloo", "OFF"),
        pytest.param("gloo", "DETAIL", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_peer_is_named_with_axis_and_operation(
    op: str, transport: str, debug_level: str
) -> None:
    error, died = run_ranks(lose_a_peer, 2, op, debug_level, transport=transport, expect_error=True)
    assert isinstance(died, RankDied)
    assert type(error) is PeerLostError
    names = {"recv": ["receive"], "all_reduce_async": ["all_reduce"], "send": ["send", "receive"]}
    assert str(error).startswith(
        tuple(f"tp {name} with rank 1: a rank is gone" for name in names.get(op, [op]))
    )
    assert "GLHF" not in str(error)
    assert "/gloo/" not in str(error)


def lose_one_of_four(context: ParallelContext) -> None:
    if context.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    context.world.barrier()


@TRANSPORTS
def test_all_survivors_of_a_larger_world_notice(transport: str) -> None:
    errors = run_layout(lose_one_of_four, tp=2, pp=2, transport=transport, expect_error=True)
    kinds = [type(error) for error in errors]
    assert kinds == [PeerLostError, PeerLostError, RankDied, PeerLostError]


def wait_in_vain(info: RankInfo, op: str) -> str:
    dist.set_debug_level(dist.DebugLevel.OFF)  # else the wrapper waits, by its own clock
    info.init_process_group()
    context = initialize(ParallelConfig(tp_size=info.world_size, timeout_s=1.0))
    if info.rank == 1:
        time.sleep(4)
        return ""
    with pytest.raises(LlamaError) as caught:
        call(context.tp, op)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "transport"),
    [
        ("all_reduce", "shm"),
        *(
            pytest.param(op, transport, marks=pytest.mark.nightly)
            for op, transport in (
                ("all_reduce", "gloo"),
                ("recv", "shm"),
                ("recv", "gloo"),
                ("send", "gloo"),
            )
        ),
    ],
)
def test_a_late_peer_is_a_timeout(op: str, transport: str) -> None:
    """The groups are fairscale's: their own timeout would be half an hour."""
    message, _ = run_ranks(wait_in_vain, 2, op, transport=transport, deadline_s=30)
    name = "receive" if op == "recv" else op
    assert message.startswith(f"{RankTimeoutError.__name__}: tp {name} with rank 1: no answer")


def wait_for_a_long_stage(context: ParallelContext) -> float:
    if context.rank == 0:
        time.sleep(2.5)
        context.pp.isend(torch.ones(1), 1).wait()
        return 1.0
    return float(context.pp.recv(torch.zeros(1), 0))


@pytest.mark.slow
@TRANSPORTS
def test_a_stage_may_wait_for_long_for_the_one_before_it(transport: str) -> None:
    """That one computes all its layers meanwhile, and beats."""
    found = run_layout(wait_for_a_long_stage, pp=2, timeout_s=1.0, transport=transport)
    assert found == [1.0, 1.0]


def differ(context: ParallelContext) -> None:
    x = torch.zeros(4 if context.rank else 6)
    context.tp.all_reduce(x)


@TRANSPORTS
def test_different_calls_are_a_mismatch(transport: str) -> None:
    """Over gloo in torch's detail mode, in which these tests run."""
    for error in run_layout(differ, tp=2, transport=transport, expect_error=True):
        assert type(error) is RankMismatchError
        assert "tp all_reduce" in str(error)


def fail_with_a_record(context: ParallelContext) -> None:
    with context.together("loading layer 7"):
        if context.rank == 1:
            context.fail(MemoryError("12 GiB needed"))
            os._exit(3)


@TRANSPORTS
def test_the_first_failure_is_part_of_the_message(transport: str) -> None:
    errors = run_layout(fail_with_a_record, tp=3, transport=transport, expect_error=True)
    for error in (errors[0], errors[2]):
        assert type(error) is PeerLostError
        assert "first failure: rank 1 (" in str(error)
        assert "in LOAD (loading layer 7): MemoryError: 12 GiB needed" in str(error)


def make_a_mistake(context: ParallelContext) -> None:
    context.tp.all_reduce(torch.zeros(2, dtype=torch.complex64).to_sparse())


@TRANSPORTS
def test_an_error_that_is_not_about_ranks_stays_what_it_is(transport: str) -> None:
    for error in run_layout(make_a_mistake, tp=2, transport=transport, expect_error=True):
        assert not isinstance(error, LlamaError)


def staged(info: RankInfo) -> dict[str, Any]:
    info.init_process_group()
    context = initialize(ParallelConfig(tp_size=2, device="cuda", backend="gloo"))
    comm = context.tp
    x = torch.arange(4.0, device=context.device) + comm.rank
    asynchronous = x.clone()
    comm.all_reduce_async(asynchronous).wait()
    out = torch.zeros(4, device=context.device)
    if comm.rank == 0:
        comm.send(x, 1)
    else:
        comm.recv(out, 0)
    found = {
        "sum": comm.all_reduce(x.clone()),
        "asynchronous sum": asynchronous,
        "gathered": comm.all_gather(x),
        "broadcast": comm.broadcast(x.clone()),
        "received": out,
    }
    assert {tensor.device.type for tensor in found.values()} == {"cuda"}
    return {name: tensor.tolist() for name, tensor in found.items()}


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_staged_over_gloo() -> None:
    for rank, found in enumerate(run_ranks(staged, 2)):
        assert found["sum"] == found["asynchronous sum"] == [1.0, 3.0, 5.0, 7.0]
        assert found["gathered"] == [0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0]
        assert found["broadcast"] == [0.0, 1.0, 2.0, 3.0]
        assert found["received"] == ([0.0] * 4 if rank == 0 else [0.0, 1.0, 2.0, 3.0])
