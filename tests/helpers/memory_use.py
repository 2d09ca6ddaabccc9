"""What a rank's process takes of memory, told by the kernel."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F

_M_MMAP_THRESHOLD = -3


def resident_bytes() -> int:
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def give_freed_memory_back() -> None:
    """From now on each block of 128 KiB or more goes back to the kernel when it is freed.

    By itself glibc raises that limit up to 32 MiB as blocks are freed, and keeps what lies below in
    heaps with holes in them: the process then shows the tensors of the past as well.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def warm_up_matmul(n_tokens: int, dims: list[tuple[int, int]]) -> None:
    """Have MKL take its packing buffers, some 5 MiB that it never gives back, for these shapes."""
    for n_rows in (1, 2, 8, n_tokens):
        for n_out, n_in in dims:
            F.linear(torch.ones(n_rows, n_in), torch.ones(n_out, n_in))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, text = line.partition(":")
        if name == field:
            return int(text.split()[0]) * 1024
    raise AssertionError(field)
