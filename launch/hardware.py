"""What this machine has to run ranks on, found without opening a device."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch import env

if TYPE_CHECKING:
    from llama.parallel.device import DeviceFacts

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, as Linux's control groups (version 2) show it there."""


@dataclass(frozen=True)
class Machine:
    """`n_cpus` are the cores this process may use, `loopback` is the name of that interface."""

    n_cpus: int
    loopback: str | None
    devices: DeviceFacts

    @property
    def host(self) -> str:
        return self.devices.host

    @property
    def n_gpus(self) -> int:
        return self.devices.cuda_count

    @property
    def gpu_problems(self) -> tuple[str, ...]:
        """Why GPUs that seem to be here will not be used, each in a line."""
        facts, problems = self.devices, []
        if facts.driver_problem:
            problems.append(facts.driver_problem)
        if facts.xpu_count:
            problems.append(f"{facts.xpu_count} Intel GPU(s) of {facts.host} are not supported")
        return tuple(problems)

    def expected_facts(self, n_ranks: int, *, host: str) -> tuple[DeviceFacts, ...]:
        """What `n_ranks` ranks on a machine like this are likely to find.

        Each has a GPU of its own while there are enough.
        """
        indices = [rank if rank < self.n_gpus else 0 for rank in range(n_ranks)]
        return tuple(
            replace(
                self.devices, host=host, shared_memory=host, cuda_index=index, cuda_uuid=str(index)
            )
            for index in indices
        )


def import_torch(n_ranks: int) -> None:
    """Import torch for ranks that are copies of this process, each with its share of the cores.

    Takes a second or two the first time, and does nothing afterwards.
    """
    env.quieten_torch(os.environ)
    is_open = env.THREADS not in os.environ
    if is_open:
        os.environ[env.THREADS] = str(threads_each(usable_cpus(), n_ranks))
    try:
        import torch

        torch.get_num_threads()  # some of its libraries look at their environment only now
    finally:
        if is_open:
            del os.environ[env.THREADS]


def threads_each(n_cpus: int, n_ranks: int) -> int:
    """How many a rank has when `n_ranks` share `n_cpus`."""
    return max(1, n_cpus // n_ranks)


def probe() -> Machine:
    """This machine. Takes as long as importing torch, if nobody has done so."""
    env.quieten_torch(os.environ)
    import torch
    from torch.distributed import is_nccl_available

    from llama.parallel import device

    n_gpus = torch.cuda.device_count()
    if n_gpus:
        # device.probe would compute on a GPU, and this process would then hold memory there
        devices = device.DeviceFacts(
            socket.gethostname(), cuda_count=n_gpus, cuda_problem="", has_nccl=is_nccl_available()
        )
    else:
        devices = device.probe(local_rank=0)
    return Machine(usable_cpus(), loopback_interface(), devices)


def usable_cpus(quota_file: Path = CPU_QUOTA) -> int:
    """Cores that this process may run on; where the system cannot tell (macOS), all there are.

    A container may see all cores of its machine and have the time of a few.
    """
    n_cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        n_cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # "max 100000" is no quota
        time_us, period_us = map(int, quota_file.read_text().split())
        n_cpus = min(n_cpus, max(1, time_us // period_us))
    return n_cpus


def loopback_interface() -> str | None:
    """Usually "lo" on Linux and "lo0" on macOS; None where neither exists."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)
