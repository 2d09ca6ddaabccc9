"""The other ranks' processes on this machine: which of them have ended (Linux; elsewhere unknown).

A process that is gone is noticed here long before its beats are missed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_STATE, _START = 0, 19
"""Fields of /proc/PID/stat after the name, see proc(5)."""


def pid_space() -> str:
    """The same text for processes that see each other by the same pids; "" where that is unknown.

    The kernel's boot names the machine, as host names need not.
    """
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    return ""


class Neighbours:
    """Processes by rank. Those that are not to be seen at the start are not watched."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        """`pids` as the others have told theirs, in this process's own pid space."""
        started = {rank: (pid, _stat(pid)) for rank, pid in pids.items()}
        self._alive = {rank: (pid, stat[_START]) for rank, (pid, stat) in started.items() if stat}

    @property
    def watched(self) -> Iterable[int]:
        """The ranks whose processes are still there."""
        return self._alive.keys()

    def take_ended(self) -> dict[int, int]:
        """Pids, by rank, of the processes that have ended since the last call."""
        ended = {
            rank: pid for rank, (pid, start) in self._alive.items() if not _is_running(pid, start)
        }
        for rank in ended:
            del self._alive[rank]
        return ended


def is_stopped(pid: int) -> bool:
    """Whether the process is there, and stopped by a signal or a debugger."""
    stat = _stat(pid)
    return bool(stat) and stat[_STATE] in "Tt"


def _is_running(pid: int, start: str) -> bool:
    """Whether this very process is there: a pid may be another's by now."""
    stat = _stat(pid)
    return bool(stat) and stat[_STATE] not in "ZX" and stat[_START] == start


def _stat(pid: int) -> list[str]:
    """Fields of the process, empty when there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
