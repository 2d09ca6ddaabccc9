"""The communicator that every axis gets, on real ranks; some think that they are on two hosts."""

from __future__ import annotations

import io
import logging
import os
import resource
import signal
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llama.config import ParallelConfig
from llama.errors import HardwareError, LlamaError, PeerLostError, RankMismatchError
from llama.log import get_logger
from llama.parallel import device
from llama.parallel.context import ParallelContext, initialize
from tests.helpers.ranks import RankDied, RankInfo, run_ranks

AXES = ("tp", "pp", "dp", "world", "messages", "local")


def joined(info: RankInfo, hosts: str, **wish: Any) -> ParallelContext:
    """A context of this rank, which is on the host named by its letter in `hosts`."""
    device._shared_memory = lambda: hosts[info.rank]  # type: ignore[assignment]
    info.init_process_group()
    return initialize(ParallelConfig(**wish))


def look_at(info: RankInfo, hosts: str, tp: int, pp: int) -> dict[str, Any]:
    context = joined(info, hosts, tp_size=tp, pp_size=pp)
    found: dict[str, Any] = {
        axis: type(getattr(context, axis)).__name__.removesuffix("Communicator") for axis in AXES
    }
    me = torch.tensor([context.rank])
    found |= {f"{axis} ranks": getattr(context, axis).all_gather(me).tolist() for axis in AXES}
    assert context.replica.all_gather(me).tolist() == found["messages ranks"]
    if context.is_leader:
        for dst in range(1, context.replica.size):
            context.mailbox.post([dst, *range(2000)], dst)
    else:
        mine = [context.replica.rank, *range(2000)]
        assert context.mailbox.receive(0) == mine
    context.mailbox.flush()
    context.agree({"seed": 1})
    context.close()
    return found


@pytest.mark.parametrize(
    ("hosts", "tp", "pp", "expected"),
    [
        ("aa", 2, 1, "Shm Single Single Shm Shm Shm"),
        ("aabb", 2, 2, "Shm Torch Single Hierarchical Hierarchical Shm"),
        ("aab", 3, 1, "Hierarchical Single Single Hierarchical Hierarchical Shm"),
        pytest.param("ab", 2, 1, "Torch Single Single Torch Torch Single"),
        pytest.param(
            *("abab", 2, 2, "Torch Shm Single Hierarchical Hierarchical Shm"),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            *("aabb", 2, 1, "Shm Single Torch Hierarchical Shm Shm"), marks=pytest.mark.nightly
        ),
        pytest.param(
            *("aaab", 2, 1, "Shm Single Shm Hierarchical Shm Shm"), marks=pytest.mark.nightly
        ),
    ],
)
def test_every_axis_takes_what_its_hosts_allow(hosts: str, tp: int, pp: int, expected: str) -> None:
    found = run_ranks(look_at, len(hosts), hosts, tp, pp, transport="auto")
    assert [found[0][axis] for axis in AXES] == expected.split()
    for rank, axes in enumerate(found):
        assert axes["world ranks"] == list(range(len(hosts)))
        assert axes["local ranks"] == [r for r, host in enumerate(hosts) if host == hosts[rank]]
    if hosts == "aaab":
        second = [found[3][axis] for axis in AXES]
        assert second == ["Torch", "Single", "Torch", "Hierarchical", "Torch", "Single"]


def with_little_memory(info: RankInfo, asked: str | None) -> tuple[str, str, list[str]]:
    """Rank 0 may not make large files, and memory that is shared is one."""
    if info.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, resource.RLIM_INFINITY))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    get_logger().addHandler(handler)
    context = joined(info, "aaa", tp_size=3, transport=asked)
    assert context.tp.all_reduce(torch.ones(2)).tolist() == [3, 3]
    context.agree({"seed": 1})
    choice = context.transport
    context.close()
    return choice.name, choice.reason, stream.getvalue().splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="what is limited elsewhere is not known")
def test_gloo_stands_in_on_all_ranks_with_one_warning() -> None:
    results = run_ranks(with_little_memory, 3, None, transport="auto")
    for rank, (name, reason, warnings) in enumerate(results):
        assert name == "gloo"
        assert reason.startswith("transport 'shm' cannot be used: ")
        assert len(warnings) == (1 if rank == 0 else 0)
    assert results[0][1] in results[0][2][0]


def test_memory_that_was_asked_for_and_cannot_be_shared_is_an_error() -> None:
    for error in run_ranks(with_little_memory, 3, "shm", expect_error=True):
        assert type(error) is HardwareError
        assert str(error).startswith("transport 'shm' cannot be used: ")
        assert str(error).endswith("; leave the transport open or ask for 'gloo'")


def with_unlike_wishes(info: RankInfo) -> None:
    joined(info, "aa", tp_size=2, transport="shm" if info.rank else "gloo")


def test_ranks_that_want_different_transports_are_told() -> None:
    for error in run_ranks(with_unlike_wishes, 2, expect_error=True, deadline_s=30):
        assert type(error) is RankMismatchError
        assert "transport: 'gloo' on rank 0; 'shm' on rank 1" in str(error)


def beside_groups_of_the_program(info: RankInfo) -> list[Any]:
    """The program's own call is under way on its group while this package uses the same axis."""
    from fairscale.nn.model_parallel import initialize as fs

    dist.set_debug_level(dist.DebugLevel.OFF)  # else torch waits for everybody at once
    info.init_process_group()
    fs.initialize_model_parallel(2)
    theirs = fs.get_model_parallel_group()
    context = initialize()
    own = torch.ones(3)
    if info.rank == 0:
        work = dist.all_reduce(own, group=theirs, async_op=True)
    total = context.tp.all_reduce(torch.ones(2))
    if info.rank == 1:
        work = dist.all_reduce(own, group=theirs, async_op=True)
    assert work is not None
    work.wait()
    found = [type(context.tp).__name__, total.tolist(), own.tolist()]
    context.close()
    dist.barrier(theirs)
    assert fs.get_model_parallel_group() is theirs
    return [*found, dist.get_world_size(theirs)]


def test_groups_of_the_program_stay_its_own() -> None:
    """Over gloo the two calls would be taken for one another."""
    found = run_ranks(beside_groups_of_the_program, 2, transport="auto")
    assert found == [["ShmCommunicator", [2, 2], [2, 2, 2], 2]] * 2


def lose_one_across_hosts(info: RankInfo, lost: int) -> None:
    context = joined(info, "aabb", tp_size=4)
    if info.rank == lost:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        context.tp.all_reduce(torch.ones(1000))
        context.tp.all_reduce(torch.ones(1000))
    except LlamaError as error:
        context.fail(error)  # as an engine does, so that the others need not wait for this one
        raise


@pytest.mark.parametrize("lost", [3, pytest.param(0, marks=pytest.mark.nightly)])
def test_a_rank_that_is_killed_is_noticed_on_both_hosts(lost: int) -> None:
    """A follower and a leader of its host."""
    errors = run_ranks(lose_one_across_hosts, 4, lost, transport="auto", expect_error=True)
    for rank, error in enumerate(errors):
        assert type(error) is (RankDied if rank == lost else PeerLostError)
        if rank != lost:
            assert str(error).startswith("tp ")
