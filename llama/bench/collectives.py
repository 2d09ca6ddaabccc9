"""Latency and bandwidth of what ranks say to each other, through the communicators of a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from llama.bench.task import Measured, Task
from llama.config import ParallelConfig
from llama.parallel.comm import Communicator
from llama.parallel.context import initialize

SIZES_BYTES = (512, 8 * 2**10, 64 * 2**10, 2**20, 16 * 2**20)
_SECONDS_EACH = 0.3
_MOST_CALLS = 2000
_LEAST_CALLS = 8
_WARM_CALLS = 5


def run(task: Task) -> Measured:
    """Rows {operation, nbytes, median_us, p90_us, gb_s} on rank 0; "send and receive" is half of
    there and back.
    """
    contestant = task.contestant
    context = initialize(
        ParallelConfig(tp_size=contestant.tp, device=task.device, transport=contestant.transport)
    )
    rows = []
    try:
        for nbytes in SIZES_BYTES:
            x = torch.ones(nbytes // 4, device=context.device)
            for name, operation in _operations(context.tp, x).items():
                rows.append(_row(name, operation, nbytes, context.tp, effort=task.effort))
        rows.append(_row("barrier", context.tp.barrier, 0, context.tp, effort=task.effort))
    finally:
        context.close()
    return Measured(rows=rows if context.rank == 0 else ())


def _operations(comm: Communicator, x: torch.Tensor) -> Mapping[str, Callable[[], object]]:
    def there_and_back() -> None:
        if comm.rank == 0:
            comm.send(x, 1)
            comm.recv(x, 1)
        elif comm.rank == 1:
            comm.recv(x, 0)
            comm.send(x, 0)

    return {
        "all_reduce": lambda: comm.all_reduce(x),
        "all_gather": lambda: comm.all_gather(x),
        "broadcast": lambda: comm.broadcast(x),
        "send and receive": there_and_back,
    }


def _row(
    name: str, operation: Callable[[], object], nbytes: int, comm: Communicator, *, effort: float
) -> dict[str, Any]:
    for _ in range(_WARM_CALLS):
        operation()
    began = time.perf_counter()
    operation()
    own = (time.perf_counter() - began) or 1e-6
    n_calls = min(_MOST_CALLS, max(_LEAST_CALLS, int(_SECONDS_EACH * effort / own)))
    n_calls = int(comm.broadcast(torch.tensor([n_calls])))
    times = []
    for _ in range(n_calls):
        began = time.perf_counter()
        operation()
        times.append(time.perf_counter() - began)
    share = 0.5 if name == "send and receive" else 1.0
    median_s = share * statistics.median(times)
    return {
        "operation": name,
        "nbytes": nbytes,
        "median_us": 1e6 * median_s,
        "p90_us": 1e6 * share * statistics.quantiles(times, n=10)[-1],
        "gb_s": nbytes / median_s / 1e9,
    }
