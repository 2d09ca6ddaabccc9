"""What this machine has to run ranks on, found without opening a device."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama.parallel.device import DeviceFacts


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

    def expected_facts(self, n_ranks: int) -> tuple[DeviceFacts, ...]:
        """What `n_ranks` ranks are likely to find, each on its own GPU while there are enough."""
        indices = [rank if rank < self.n_gpus else 0 for rank in range(n_ranks)]
        return tuple(
            replace(self.devices, cuda_index=index, cuda_uuid=str(index)) for index in indices
        )


def probe() -> Machine:
    """This machine. Takes as long as importing torch, a second or two."""
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


def usable_cpus() -> int:
    """Cores that this process may run on; where the system cannot tell (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loopback_interface() -> str | None:
    """Usually "lo" on Linux and "lo0" on macOS; None where neither exists."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)
