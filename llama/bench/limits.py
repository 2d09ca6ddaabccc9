"""What the machine itself can do: reading and copying memory, and products of matrices.

Best of many short runs in a fresh process: a limit is what it can do, not what it usually does.
Read is the sum (float32 and int64, the better of both) of an array as large as the weights to come,
in huge pages as they are: a smaller one may lie where memory is faster. Copy counts bytes read and
written, matmul is torch's product of large square matrices. On a GPU the only thread count is 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.bench.task import Measured, Task
from llama.checkpoint.loading.huge_pages import ask_for_huge_pages

_COPIED_BYTES = 2**28
_MATRIX_SIZES = (1536, 2048)
_N_RUNS = 7
_LEAST_RUNS = 3


@dataclass(frozen=True)
class Limits:
    """GB/s and GFLOP/s by number of threads."""

    read_gb_s: Mapping[int, float]
    copy_gb_s: Mapping[int, float]
    matmul_gflop_s: Mapping[int, float]

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> Limits:
        """From the figures of `run`."""
        found: dict[str, dict[int, float]] = {"read": {}, "copy": {}, "matmul": {}}
        for name, figure in figures.items():
            what, _, n_threads = name.partition(" with ")
            if what in found:
                found[what][int(n_threads)] = figure
        return cls(found["read"], found["copy"], found["matmul"])


def run(task: Task) -> Measured:
    """Figures "read with N", "copy with N" and "matmul with N", N threads."""
    return Measured(figures=dict(_measure(task, torch.device(task.device))))


def _measure(task: Task, device: torch.device) -> Iterator[tuple[str, float]]:
    n_runs = max(_LEAST_RUNS, round(_N_RUNS * task.effort))
    weights = _array(max(task.read_bytes, _COPIED_BYTES), device)
    source = weights[: _COPIED_BYTES // weights.itemsize]
    target = _array(_COPIED_BYTES, device)
    whole = weights.view(torch.int64)
    most_threads = 1 if device.type == "cuda" else task.contestant.n_threads
    for n_threads in range(1, most_threads + 1):
        torch.set_num_threads(n_threads)
        read_s = min(best_s(weights.sum, device, n_runs), best_s(whole.sum, device, n_runs))
        yield f"read with {n_threads}", weights.nbytes / read_s / 1e9
        copy_s = best_s(lambda: target.copy_(source), device, n_runs)
        yield f"copy with {n_threads}", 2 * source.nbytes / copy_s / 1e9
        flop_s = max(_flop_s(size, device, n_runs) for size in _MATRIX_SIZES)
        yield f"matmul with {n_threads}", flop_s / 1e9


def _array(n_bytes: int, device: torch.device) -> Tensor:
    """float32, of an even number of elements, in huge pages as weights are."""
    array = torch.empty(n_bytes // 8 * 2, device=device)
    ask_for_huge_pages(array)
    return array.fill_(1)


def _flop_s(size: int, device: torch.device, n_runs: int) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.ones(size, size, dtype=dtype, device=device)
    out = torch.empty_like(left)
    return 2 * size**3 / best_s(lambda: torch.mm(left, left, out=out), device, n_runs)


def best_s(work: Callable[[], object], device: torch.device, n_runs: int) -> float:
    """The shortest of `n_runs`; one more goes before and is not counted."""
    times = []
    for _ in range(n_runs + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
