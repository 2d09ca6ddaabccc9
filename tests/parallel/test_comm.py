"""Collectives over real ranks against plain arithmetic, over every transport; the axis of one rank.

A hierarchical axis has its ranks on hosts that are made up, and gloo everywhere.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llama.parallel.comm import Communicator, SingleCommunicator
from llama.parallel.context import ParallelContext
from llama.parallel.hierarchical import HierarchicalCommunicator
from llama.parallel.torch_comm import TorchCommunicator
from tests.helpers.ranks import run_layout

TRANSPORTS = pytest.mark.parametrize("transport", ["shm", "gloo"])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def piece(rank: int, dtype: torch.dtype) -> Tensor:
    """Small whole numbers, exact in every dtype; (2, 3)."""
    return (torch.arange(6).view(2, 3) + 10 * rank).to(dtype)


def collectives(context: ParallelContext) -> dict[str, Any]:
    assert context.transport.name in ("none", os.environ["LLAMA_TRANSPORT"])
    return collectives_of(context.tp)


def collectives_of(comm: Communicator) -> dict[str, Any]:
    found = {}
    for dtype in DTYPES:
        mine = piece(comm.rank, dtype)
        asynchronous = mine.clone()
        comm.all_reduce_async(asynchronous).wait()
        last = comm.size - 1
        found[str(dtype)] = {
            "all_reduce": comm.all_reduce(mine.clone()),
            "all_reduce_async": asynchronous,
            "all_gather": comm.all_gather(mine),
            "all_gather 0": comm.all_gather(mine, dim=0),
            "gather": comm.gather(mine, dst=last),
            "gather 0": comm.gather(mine, dim=0),
            "broadcast": comm.broadcast(mine.clone(), src=last),
        }
    comm.barrier()
    return found


@TRANSPORTS
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_collectives_equal_plain_arithmetic(size: int, transport: str) -> None:
    check_collectives(run_layout(collectives, tp=size, transport=transport))


def check_collectives(results: list[dict[str, Any]]) -> None:
    size = len(results)
    for rank, by_dtype in enumerate(results):
        for dtype in DTYPES:
            pieces = [piece(r, dtype) for r in range(size)]
            total = torch.stack(pieces).sum(0).to(dtype)
            expected = {
                "all_reduce": total,
                "all_reduce_async": total,
                "all_gather": torch.cat(pieces, -1),
                "all_gather 0": torch.cat(pieces, 0),
                "gather": torch.cat(pieces, -1) if rank == size - 1 else None,
                "gather 0": torch.cat(pieces, 0) if rank == 0 else None,
                "broadcast": pieces[-1],
            }
            for op, found in by_dtype[str(dtype)].items():
                where = f"{op} {dtype} on rank {rank} of {size}"
                want = expected[op]
                assert (found is None) == (want is None), where
                if want is not None:
                    torch.testing.assert_close(found, want, rtol=0, atol=0, msg=where)


def awkward_shapes(context: ParallelContext) -> list[Any]:
    comm = context.tp
    strided = piece(comm.rank, torch.float32).t()
    summed = comm.all_reduce(strided)
    column = torch.zeros(3, 2)[:, 0]
    if comm.rank == 0:
        comm.send(strided[:, 1], 1)
    else:
        column = comm.recv(column, 0)
    empty = comm.all_gather(torch.zeros(2, 0))
    return [summed, column, empty.shape, comm.broadcast(torch.zeros(0)).shape]


@TRANSPORTS
def test_strided_and_empty_tensors(transport: str) -> None:
    total = (piece(0, torch.float32) + piece(1, torch.float32)).t()
    found = run_layout(awkward_shapes, tp=2, transport=transport)
    for rank, (summed, column, *shapes) in enumerate(found):
        assert summed.tolist() == total.tolist()
        # rank 0 sends after the sum, which may have been done in place
        assert column.tolist() == ([0.0] * 3 if rank == 0 else total[:, 1].tolist())
        assert shapes == [(2, 0), (0,)]


def along_the_pipeline(context: ParallelContext) -> dict[str, Any]:
    """On a 2 x 2 grid the pipeline of rank 1 is {1, 3}: local ranks differ from global ones."""
    pp, me = context.pp, torch.tensor([100 + context.rank])
    if pp.rank == 0:
        pp.send(me, 1)
        got = pp.recv(torch.zeros(1, dtype=torch.int64), 1)
    else:
        got = pp.recv(torch.zeros(1, dtype=torch.int64), 0)
        pp.send(me, 0)
    works, outs = [], [torch.zeros(1, dtype=torch.int64) for _ in range(3)]
    for i, out in enumerate(outs):
        is_sender = pp.rank == 0
        works.append(pp.isend(me + i, 1) if is_sender else pp.irecv(out, 0))
    for work in works:
        work.wait()
    return {
        "peer": int(got),
        "in order": [int(out) for out in outs],
        "from the last": int(pp.broadcast(me.clone(), src=1)),
        "tp": context.tp.all_gather(me).tolist(),
        "pp": pp.all_gather(me).tolist(),
    }


@TRANSPORTS
def test_ranks_of_an_axis_are_local_to_it(transport: str) -> None:
    found = run_layout(along_the_pipeline, tp=2, pp=2, transport=transport)
    assert [row["peer"] for row in found] == [102, 103, 100, 101]
    assert [row["in order"] for row in found[2:]] == [[100, 101, 102], [101, 102, 103]]
    assert [row["from the last"] for row in found] == [102, 103, 102, 103]
    assert [row["tp"] for row in found] == [[100, 101], [100, 101], [102, 103], [102, 103]]
    assert [row["pp"] for row in found] == [[100, 102], [101, 103], [100, 102], [101, 103]]


def uneven_use(context: ParallelContext) -> int:
    """One tensor group works ten times as much as the other, and nobody waits."""
    total = torch.tensor([context.rank])
    for _ in range(10 if context.coordinates.pp_rank else 1):
        total = context.tp.all_reduce(total.clone())
    return int(context.world.all_reduce(total))


@TRANSPORTS
def test_groups_of_one_axis_are_independent(transport: str) -> None:
    first, second = 1, 5 * 2**9
    assert run_layout(uneven_use, tp=2, pp=2, transport=transport) == [2 * (first + second)] * 4


def overlapping(context: ParallelContext) -> list[int]:
    """Several sums under way at once arrive where they belong."""
    tensors = [torch.tensor([context.rank + 10 * i]) for i in range(5)]
    works = [context.tp.all_reduce_async(x) for x in tensors]
    for work in reversed(works):
        work.wait()
    return [int(x) for x in tensors]


@TRANSPORTS
def test_several_sums_at_once(transport: str) -> None:
    found = run_layout(overlapping, tp=2, transport=transport)
    assert found == [[1 + 20 * i for i in range(5)]] * 2


def group_of(ranks: list[int], axis: str) -> Communicator:
    """Over gloo, on the ranks that are in it."""
    group = dist.new_group(ranks, backend="gloo")
    if len(ranks) == 1 or dist.get_rank() not in ranks:
        return SingleCommunicator()
    return TorchCommunicator(group, axis=axis, timeout_s=30)


def on_made_up_hosts(context: ParallelContext, hosts: list[list[int]]) -> dict[str, Any]:
    own = next(i for i, ranks in enumerate(hosts) if context.rank in ranks)
    inside = [group_of(ranks, "inside") for ranks in hosts][own]
    leaders = group_of([ranks[0] for ranks in hosts], "between")
    whole = group_of(list(range(context.tp.size)), "whole")
    between = leaders if inside.rank == 0 else None
    comm = HierarchicalCommunicator(whole, inside=inside, between=between, hosts=hosts)
    assert (comm.rank, comm.size) == (context.rank, context.tp.size)
    found = collectives_of(comm)
    me, out = torch.tensor([comm.rank]), torch.zeros(comm.size, 1, dtype=torch.int64)
    sent = [comm.isend(me, peer) for peer in range(comm.size) if peer != comm.rank]
    for peer in range(comm.size):
        if peer != comm.rank:
            comm.recv(out[peer], peer)
    for work in sent:
        work.wait()
    found["received"] = out[:, 0].tolist()
    from_all = [comm.broadcast(me.clone(), src=src).item() for src in range(comm.size)]
    found["broadcast"] = from_all
    return found


@pytest.mark.parametrize(
    "hosts",
    [
        [[0, 1], [2, 3]],
        [[0, 2], [1]],
        pytest.param([[0], [1, 2, 3]], marks=pytest.mark.nightly),
        pytest.param([[0, 3], [1], [2]], marks=pytest.mark.nightly),
    ],
)
def test_an_axis_across_hosts_of_any_number_of_ranks(hosts: list[list[int]]) -> None:
    size = sum(map(len, hosts))
    results = run_layout(on_made_up_hosts, hosts, tp=size, transport="gloo")
    for rank, found in enumerate(results):
        assert found.pop("received") == [0 if peer == rank else peer for peer in range(size)]
        assert found.pop("broadcast") == list(range(size))
    check_collectives(results)


def test_the_axis_of_one_rank_is_the_identity() -> None:
    comm: Communicator = SingleCommunicator()
    x = torch.arange(4.0)
    assert (comm.rank, comm.size) == (0, 1)
    comm.all_reduce_async(x).wait()
    comm.barrier()
    for same in (comm.all_reduce(x), comm.all_gather(x), comm.gather(x), comm.broadcast(x)):
        assert same is x
    assert x.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("op", ["send", "recv", "isend", "irecv"])
def test_the_axis_of_one_rank_has_nobody_to_talk_to(op: str) -> None:
    with pytest.raises(AssertionError, match="axis of one rank"):
        getattr(SingleCommunicator(), op)(torch.zeros(1), 0)
