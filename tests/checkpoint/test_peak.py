"""The peak is what the process held at its highest, above what it began with."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from llama.checkpoint.loading.peak import PeakMemory

MIB = 2**20


def take_and_give_back(n_bytes: int) -> None:
    """Pages of their own: an allocator may serve a tensor with pages that it already holds."""
    with mmap.mmap(-1, n_bytes) as pages:
        for start in range(0, n_bytes, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps a peak that can be reset")
def test_memory_that_was_given_back_counts() -> None:
    take_and_give_back(256 * MIB)
    peak = PeakMemory()
    take_and_give_back(64 * MIB)
    assert 60 * MIB <= peak.nbytes <= 100 * MIB


def test_without_a_count_by_the_kernel_the_samples_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llama.checkpoint.loading.peak._PROC", tmp_path / "absent")
    peak = PeakMemory()
    peak.sample()
    assert peak.nbytes >= 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_samples_find_the_highest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def status(held_kib: int) -> None:
        (tmp_path / "status").write_text(f"Name: x\nVmHWM: 900000 kB\nVmRSS: {held_kib} kB\n")

    (tmp_path / "clear_refs").mkdir()  # which cannot be written
    monkeypatch.setattr("llama.checkpoint.loading.peak._PROC", tmp_path)
    status(1000)
    peak = PeakMemory()
    for held_kib in (3000, 2000):
        status(held_kib)
        peak.sample()
    assert peak.nbytes == 2000 * 1024
