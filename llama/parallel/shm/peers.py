"""Whether the processes of the other ranks are still there."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def process_start(pid: int) -> int:
    """When a process of this pid namespace began, in ticks; 0 when there is none, or it is dead.

    A pid alone may be somebody else's by now, or in another namespace.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    return 0


class PeerProcesses:
    """The processes `pids`, in rank order; 0 for one that cannot be watched from here."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)
        self._starts = [process_start(pid) if pid else 0 for pid in pids]
        self._fds = [_open(pid) for pid in pids]

    def pid(self, rank: int) -> int:
        return self._pids[rank] if rank < len(self._pids) else 0

    def is_gone(self, rank: int) -> bool:
        """False also where nobody can know."""
        if not self.pid(rank):
            return False
        fd = self._fds[rank]
        if fd >= 0:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))
        start = self._starts[rank]
        return not start or process_start(self._pids[rank]) != start

    def close(self) -> None:
        """Idempotent. From now on nobody is gone."""
        self._pids = ()
        fds, self._fds = self._fds, []
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _open(pid: int) -> int:
    """-1 where the kernel, or a sandbox, has no such thing."""
    if pid and sys.platform == "linux":
        with suppress(OSError):
            return os.pidfd_open(pid)
    return -1
