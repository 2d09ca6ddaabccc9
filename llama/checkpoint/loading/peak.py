"""The most host memory a process held during some work, over what it held before."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/self")


class PeakMemory:
    """Counts from its making. The kernel counts, from zero where it lets itself be told to.

    Elsewhere a peak from before hides smaller ones, so `sample` between steps is what counts.
    """

    def __init__(self) -> None:
        self._is_exact = False
        with suppress(OSError):
            (_PROC / "clear_refs").write_text("5")  # proc(5): forget the peak so far
            self._is_exact = True
        self._before = self._most = self._now()

    def sample(self) -> None:
        if not self._is_exact:
            self._most = max(self._most, self._now())

    @property
    def nbytes(self) -> int:
        self.sample()
        most = _status("VmHWM") if self._is_exact else None
        return max(self._most if most is None else most, self._before) - self._before

    @staticmethod
    def _now() -> int:
        held = _status("VmRSS")
        if held is not None:
            return held
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _status(field: str) -> int | None:
    """A size in /proc/self/status, in bytes; None where there is no such thing."""
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
