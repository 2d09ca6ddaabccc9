"""What one rank can compute on: facts found out by trying, as plain values that can be sent.

A driver can be present and unusable, and a build can lack what the machine has, so nothing here is
concluded from what is merely installed. What to do with the facts is decided in `backend`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

_DRIVER_FILES = (Path("/dev/nvidia0"), Path("/dev/kfd"))


@dataclass(frozen=True)
class DeviceFacts:
    """One rank's machine. `cuda_index` is the GPU that the rank would take.

    `cuda_problem` says why CUDA cannot be used, "" when a small product on that GPU came out right.
    `has_driver` is whether a GPU driver shows itself, usable or not, and `gpu_build` what GPUs this
    torch is made for ("CUDA 12.8", "ROCm 6.4", "" for none). `xpu_count` are Intel's, which nothing
    here computes on. Ranks with the same `shared_memory` can map each other's files in /dev/shm.
    """

    host: str
    shared_memory: str = ""
    cuda_count: int = 0
    cuda_index: int = 0
    cuda_problem: str = "torch sees no GPU"
    cuda_uuid: str = ""
    has_nccl: bool = False
    has_mps: bool = False
    has_driver: bool = False
    gpu_build: str = ""
    xpu_count: int = 0

    @property
    def cuda_works(self) -> bool:
        return not self.cuda_problem

    @property
    def driver_problem(self) -> str:
        """Why a GPU driver that shows itself is of no use, "" when it is or there is none."""
        if self.cuda_works or not self.has_driver:
            return ""
        build = f"is built for {self.gpu_build}" if self.gpu_build else "is built without GPUs"
        return (
            f"there is a GPU driver on {self.host}, but torch, which {build}, cannot use it: "
            f"{self.cuda_problem}"
        )


def probe(*, local_rank: int | None, cuda_index: int | None = None) -> DeviceFacts:
    """The facts of this process. `cuda_index` None takes the GPU that belongs to `local_rank`.

    With fewer visible GPUs than local ranks that is the first one: a launcher may show each rank
    only its own. With no local rank it is torch's current device, which a program may have set.
    """
    count = torch.cuda.device_count()
    problem, uuid, index = "torch sees no GPU", "", 0
    if count:
        try:
            index = _cuda_index(local_rank, count) if cuda_index is None else cuda_index
            uuid = _try_cuda(index)
            problem = ""
        except (RuntimeError, AssertionError) as error:  # what torch raises differs by cause
            problem = " ".join(str(error).split()) or type(error).__name__
    return DeviceFacts(
        host=socket.gethostname(),
        shared_memory=_shared_memory(),
        cuda_count=count,
        cuda_index=index,
        cuda_problem=problem,
        cuda_uuid=uuid,
        has_nccl=dist.is_available() and dist.is_nccl_available(),
        has_mps=torch.backends.mps.is_available(),
        has_driver=any(path.exists() for path in _DRIVER_FILES),
        gpu_build=_gpu_build(),
        xpu_count=torch.xpu.device_count(),
    )


def _gpu_build() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else ""


def _shared_memory() -> str:
    """Which machine, which /dev/shm of it, and who: containers and users may not share one."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname(), str(os.getuid())]
    with suppress(OSError):
        parts += [boot_id.read_text().strip(), str(os.stat("/dev/shm").st_dev)]
    return " ".join(parts)


def _cuda_index(local_rank: int | None, count: int) -> int:
    if local_rank is None:
        return torch.cuda.current_device()
    return local_rank if local_rank < count else 0


def _try_cuda(index: int) -> str:
    """The UUID of a GPU that multiplies two small matrices rightly; RuntimeError if it does not."""
    ones = torch.ones(8, 8, device=torch.device("cuda", index))
    if (ones @ ones).sum().item() != 8**3:
        raise RuntimeError(f"GPU {index} multiplied two matrices wrongly")
    return str(torch.cuda.get_device_properties(index).uuid)
