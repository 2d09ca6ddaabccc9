"""Everything that ranks say over shared memory, against what gloo makes of it.

Each rank speaks C or Python, in all mixtures. Whole numbers are exact in every dtype.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama.parallel.comm import Communicator
from llama.parallel.shm.layout import SLOT_BYTES
from tests.helpers.ranks import RankInfo, run_ranks
from tests.helpers.shm import both

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
MIXTURES = [
    (2, (0,)),
    *(
        pytest.param(*mixture, marks=pytest.mark.nightly)
        for mixture in ((2, ()), (2, (0, 1)), (3, (1, 2)), (4, (0, 1, 2, 3)), (4, (0, 2)))
    ),
]
SIZES = (0, 3, 20_011)
Operation = Callable[[Communicator, Tensor, int], Tensor | None]


def all_reduce(comm: Communicator, x: Tensor, root: int) -> Tensor:
    return comm.all_reduce(x.clone())


def all_reduce_async(comm: Communicator, x: Tensor, root: int) -> Tensor:
    first, second = x.clone(), x.clone()
    works = [comm.all_reduce_async(first), comm.all_reduce_async(second)]
    gathered = comm.all_gather(x)  # the sums finish before it
    works[root % 2].wait()
    works[1 - root % 2].wait()
    return torch.cat([first, second, gathered], -1)


def all_gather(comm: Communicator, x: Tensor, root: int) -> Tensor:
    return comm.all_gather(x, dim=root % x.dim())


def gather(comm: Communicator, x: Tensor, root: int) -> Tensor | None:
    return comm.gather(x, dst=root)


def broadcast(comm: Communicator, x: Tensor, root: int) -> Tensor:
    return comm.broadcast(x.clone(), src=root)


def ring_shift(comm: Communicator, x: Tensor, root: int) -> Tensor:
    """Two messages to the next rank, received in the other order."""
    works = [comm.isend(x, (comm.rank + 1) % comm.size) for _ in range(2)]
    src = (comm.rank - 1) % comm.size
    outs = [torch.empty_like(x), torch.empty_like(x)]
    receiving = [comm.irecv(out, src) for out in outs]
    for work in (*reversed(receiving), *works):
        work.wait()
    return torch.cat(outs, -1)


def barrier(comm: Communicator, x: Tensor, root: int) -> None:
    comm.barrier()


OPERATIONS: tuple[Operation, ...] = (
    *(all_reduce, all_reduce_async, all_gather, gather, broadcast, ring_shift, barrier),
)


def values(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n = torch.Size(shape).numel()
    return ((torch.arange(n) * 7 + rank * 3) % 11).view(shape).to(dtype)


def expected(operation: Operation, gloo: Communicator, x: Tensor, root: int) -> Tensor | None:
    """gloo cannot sum booleans: any of them is what torch makes of a sum."""
    if x.dtype is not torch.bool:
        return operation(gloo, x, root)
    found = operation(gloo, x.to(torch.uint8), root)
    return None if found is None else found != 0


def check(
    operation: Operation, shm: Communicator, gloo: Communicator, x: Tensor, root: int
) -> None:
    found, right = operation(shm, x, root), expected(operation, gloo, x, root)
    assert (found is None) == (right is None)
    if found is not None and right is not None:
        assert found.dtype == x.dtype
        assert torch.equal(found, right), (operation.__name__, x.dtype, x.shape, root)


def every_operation(info: RankInfo, native: tuple[int, ...]) -> None:
    shm, gloo = both(info, native)
    for dtype in DTYPES:
        for size in SIZES:
            x = values(shm.rank, (2, size), dtype)
            for operation in OPERATIONS:
                check(operation, shm, gloo, x, size % shm.size)
    shm.close()


@pytest.mark.parametrize(("size", "native"), MIXTURES)
def test_equal_to_gloo_in_every_mixture(size: int, native: tuple[int, ...]) -> None:
    run_ranks(every_operation, size, native)


def big_tensors(info: RankInfo, native: tuple[int, ...]) -> None:
    shm, gloo = both(info, native)
    for n_bytes in (SLOT_BYTES - 4, SLOT_BYTES, SLOT_BYTES + 4, 5_000_004):
        x = values(shm.rank, (n_bytes // 4,), torch.float32)
        for operation in OPERATIONS:
            check(operation, shm, gloo, x, 1)
    shm.close()


@pytest.mark.parametrize(
    ("size", "native"), [pytest.param(2, (0,), marks=pytest.mark.nightly), (3, (0, 2))]
)
def test_larger_than_any_slot_and_ring(size: int, native: tuple[int, ...]) -> None:
    run_ranks(big_tensors, size, native)


def random_rounds(info: RankInfo, native: tuple[int, ...], n_rounds: int, seed: int) -> None:
    shm, gloo = both(info, native)
    draw = random.Random(seed)  # the same on all ranks
    for _ in range(n_rounds):
        shape = (draw.choice((1, 1, 2)), draw.choice((1, 5, 33, 1000, 40_000)))
        x = values(shm.rank, shape, draw.choice(DTYPES))
        check(draw.choice(OPERATIONS), shm, gloo, x, draw.randrange(shm.size))
    shm.close()


def test_rounds_of_anything() -> None:
    run_ranks(random_rounds, 4, (0, 1), 120, 0)


@pytest.mark.nightly
@pytest.mark.parametrize(("size", "native"), [(2, (0, 1)), (2, ()), (3, (0,)), (4, (0, 2))])
@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_rounds(size: int, native: tuple[int, ...], seed: int) -> None:
    run_ranks(random_rounds, size, native, 2000, seed, deadline_s=300)


def without_gloo_between(info: RankInfo, native: tuple[int, ...], n_rounds: int) -> float:
    """Nothing but shared memory orders these: ranks race as far ahead as they may."""
    shm, _ = both(info, native)
    total = torch.zeros(7)
    for i in range(n_rounds):
        root = i % shm.size
        x = torch.full((7,), float(i if shm.rank == root else -1))
        total += shm.broadcast(x, src=root)
        shm.gather(x, dst=root)
        total += shm.all_reduce(torch.full((7,), float(shm.rank)))
        if shm.rank == root:
            shm.send(x, (root + 1) % shm.size)
        elif shm.rank == (root + 1) % shm.size:
            assert torch.equal(shm.recv(torch.empty(7), root), x * 0 + i)
    shm.barrier()
    shm.close()
    return float(total[3])


@pytest.mark.parametrize(("size", "native"), [(2, (0, 1)), (3, (0,)), (4, ())])
def test_nobody_overtakes(size: int, native: tuple[int, ...]) -> None:
    n_rounds = 300
    right = n_rounds * (n_rounds - 1) / 2 + n_rounds * size * (size - 1) / 2
    assert run_ranks(without_gloo_between, size, native, n_rounds) == [right] * size


def random_sums(info: RankInfo, native: tuple[int, ...]) -> list[Tensor]:
    shm, gloo = both(info, native)
    torch.manual_seed(info.rank)
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for n in (5, 50_000):
            x = torch.randn(n).to(dtype)
            parts = gloo.all_gather(x.view(1, -1), dim=0)
            wide = parts[0].float()
            for part in parts[1:]:
                wide = wide + part.float()
            total = shm.all_reduce(x)
            assert torch.equal(total, wide.to(dtype))
            found.append(total)
    nan = shm.all_reduce(torch.tensor([1.0, float("nan"), float("inf")]).to(torch.bfloat16))
    assert nan.isnan().tolist() == [False, True, False]
    return found


@pytest.mark.parametrize("native", [(), (0, 1, 2), (1,)])
def test_sums_are_taken_in_rank_order_and_wide(native: tuple[int, ...]) -> None:
    first, *others = run_ranks(random_sums, 3, native)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def odd_tensors(info: RankInfo) -> None:
    shm, gloo = both(info, (0, 1))
    strided = values(shm.rank, (6, 4), torch.float32).t()
    complex_ = torch.full((3,), complex(1, shm.rank))
    for operation in (all_reduce, all_gather, broadcast):
        check(operation, shm, gloo, strided, 1)
    assert torch.equal(shm.all_reduce(complex_), torch.full((3,), complex(2, 1)))
    assert shm.all_reduce(torch.tensor(2.0)).item() == 4.0
    out = torch.zeros(4, 6).t()
    if shm.rank:
        shm.recv(out, 0)
        assert torch.equal(out, values(0, (6, 4), torch.float32))
    else:
        shm.send(values(0, (6, 4), torch.float32), 1)


def test_strided_complex_and_single_values() -> None:
    run_ranks(odd_tensors, 2)
