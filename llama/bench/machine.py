"""The machine and the software of a run, for whoever reads its figures later."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from llama.bench.peers import PACKAGES, installed
from llama.version import VERSION

_TELLING_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "asimd", "sve")
_WATCHED_S = 0.5


@dataclass(frozen=True)
class MachineFacts:
    """`instructions` are those that decide how fast products can be."""

    cpu: str
    n_cores: int
    memory_bytes: int
    instructions: tuple[str, ...]
    gpu: str | None
    system: str

    @classmethod
    def here(cls, *, device: str = "cpu") -> MachineFacts:
        info = _cpu_info()
        flags = set(info.get("flags", info.get("Features", "")).split())
        return cls(
            cpu=info.get("model name") or platform.processor() or platform.machine(),
            n_cores=core_count(),
            memory_bytes=_memory_bytes(),
            instructions=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
            gpu=_gpu_name() if device == "cuda" else None,
            system=f"{platform.system()} {platform.release()}",
        )


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def others_busy_share() -> float:
    """Part of all cores that other programs use just now, over half a second; 0 where unknown."""
    before = _cpu_seconds()
    time.sleep(_WATCHED_S)
    after = _cpu_seconds()
    whole = sum(after) - sum(before)
    idle = sum(after[3:5]) - sum(before[3:5])
    return 1 - idle / whole if whole else 0.0


def _cpu_seconds() -> list[int]:
    """proc(5): user, nice, system, idle, iowait, irq, softirq, steal, in ticks."""
    path = Path("/proc/stat")
    if not path.exists():
        return [0] * 8
    return [int(word) for word in path.read_text().splitlines()[0].split()[1:9]]


def versions() -> dict[str, str]:
    """Of everything whose version decides a figure; "not installed" where it is not."""
    names = ["torch", *(package for packages in PACKAGES.values() for package in packages)]
    found = {name: installed(name) or "not installed" for name in names}
    return {"python": platform.python_version(), "llama": VERSION, **found}


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()
