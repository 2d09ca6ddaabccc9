"""What a rank finds where it runs, and the ranks of one machine together. Plain values to be sent.

Nothing here talks to another rank.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import llama
from llama.engine.memory import free_bytes
from llama.parallel.device import DeviceFacts, probe
from llama.parallel.fingerprint import environment

if sys.platform != "win32":
    import resource

_SHARED_MEMORY = Path("/dev/shm")
_OOM_EVENTS = Path("/sys/fs/cgroup/memory.events")


@dataclass(frozen=True)
class RankFacts:
    """One rank's place. `machine` has the same text for ranks that share memory.

    `device_problem` says why there is no CUDA, "" where it works. `cores` are those that the rank
    may run on. What the system does not tell is None. `must_match` has to be alike on all ranks.
    """

    rank: int
    host: str
    machine: str
    pid: int
    device: str
    device_problem: str
    has_driver: bool
    gpu_free_bytes: int | None
    gpu_total_bytes: int | None
    cores: Sequence[int]
    n_threads: int
    ram_free_bytes: int
    shm_free_bytes: int | None
    max_open_files: int | None
    n_oom_kills: int
    versions: Mapping[str, str]
    must_match: Mapping[str, str]


def find_facts(*, rank: int, local_rank: int | None, cuda_index: int | None = None) -> RankFacts:
    """The facts of this process, found by trying: the GPU has multiplied two matrices.

    `local_rank` and `cuda_index` choose the GPU as they do for `probe`.
    """
    device = probe(local_rank=local_rank, cuda_index=cuda_index)
    gpu = torch.device("cuda", device.cuda_index) if device.cuda_works else None
    free, total = torch.cuda.mem_get_info(gpu) if gpu else (None, None)
    versions = _versions(device)
    return RankFacts(
        rank=rank,
        host=device.host,
        machine=device.shared_memory,
        pid=os.getpid(),
        device=torch.cuda.get_device_name(gpu) if gpu else "cpu",
        device_problem=device.cuda_problem,
        has_driver=device.has_driver,
        gpu_free_bytes=free,
        gpu_total_bytes=total,
        cores=_cores(),
        n_threads=torch.get_num_threads(),
        ram_free_bytes=free_bytes(torch.device("cpu"), local_ranks=1),
        shm_free_bytes=_free_shared_memory(),
        max_open_files=_max_open_files(),
        n_oom_kills=_oom_kills(),
        versions=versions,
        must_match={**environment(), "nccl": versions["nccl"]},
    )


@dataclass(frozen=True)
class Host:
    """The ranks that share one machine's memory, and what they have in common."""

    ranks: tuple[RankFacts, ...]

    @property
    def name(self) -> str:
        return self.ranks[0].host

    @property
    def first_rank(self) -> int:
        """The rank that speaks for this host."""
        return self.ranks[0].rank

    @property
    def n_cores(self) -> int:
        return len({core for rank in self.ranks for core in rank.cores})

    @property
    def n_threads(self) -> int:
        return sum(rank.n_threads for rank in self.ranks)

    @property
    def ram_free_bytes(self) -> int:
        return min(rank.ram_free_bytes for rank in self.ranks)

    @property
    def gpu_bytes(self) -> tuple[int, int] | None:
        """Free and in all, of the fullest GPU."""
        known = [
            (rank.gpu_free_bytes, rank.gpu_total_bytes)
            for rank in self.ranks
            if rank.gpu_free_bytes is not None and rank.gpu_total_bytes is not None
        ]
        return min(known, default=None)

    @property
    def devices(self) -> str:
        """'2 x cpu', '3 x NVIDIA H200, 1 x cpu'."""
        names = [rank.device for rank in self.ranks]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def hosts_of(facts: Sequence[RankFacts]) -> list[Host]:
    """The machines in the order of their first ranks."""
    machines = dict.fromkeys(rank.machine for rank in facts)
    return [Host(tuple(rank for rank in facts if rank.machine == machine)) for machine in machines]


def _versions(device: DeviceFacts) -> dict[str, str]:
    nccl = "none"
    if device.has_nccl:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "llama": llama.__version__,
        "nccl": nccl,
    }


def _cores() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _free_shared_memory() -> int | None:
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return None


def _max_open_files() -> int | None:
    if sys.platform == "win32":
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit


def _oom_kills() -> int:
    """Processes of this container that the kernel has killed for memory since it started."""
    with suppress(OSError, ValueError):
        lines = (line.split() for line in _OOM_EVENTS.read_text().splitlines())
        return sum(int(count) for name, count in lines if name == "oom_kill")
    return 0
