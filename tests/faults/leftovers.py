"""What a job may leave behind: processes, listening ports, shared memory, temporary files.

Processes are recognised by a mark in their environment, so other programs do not disturb the count.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "FAULTS_SCENE"
SETTLE_S = 3.0
"""A socket or a process that is on its way out is none that stays."""
_LISTENING = "0A"


@dataclass(frozen=True)
class State:
    """Listening sockets as inode -> address, and the names in /dev/shm."""

    listening: dict[str, str]
    shared_memory: frozenset[str]

    @classmethod
    def now(cls) -> State:
        return cls(listening(), _names(Path("/dev/shm")))


def listening(pid: int | str = "self") -> dict[str, str]:
    """Inode -> "address:port" in hex of every listening TCP socket in `pid`'s network namespace."""
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == _LISTENING:
                    found[fields[9]] = fields[1]
    return found


def lives(pid: int) -> bool:
    """Whether `pid` runs or is stopped; a zombie that nobody has collected is gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def marked(mark: str) -> list[int]:
    """The living processes that were started with `mark` in their environment."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if entry in path.read_bytes().split(b"\0") and lives(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def left_behind(before: State, mark: str, temporary: Path) -> list[str]:
    """What is there that was not before, in words; waits up to SETTLE_S for it to go."""
    end = time.monotonic() + SETTLE_S
    while (found := list(_left(before, mark, temporary))) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def kill_marked(mark: str) -> None:
    """End every process of `mark`, by pid."""
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _left(before: State, mark: str, temporary: Path) -> Iterator[str]:
    for pid in marked(mark):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            yield f"process {pid} ({' '.join(words[:6])})"
    after = State.now()
    new = {inode: at for inode, at in after.listening.items() if inode not in before.listening}
    owners = _socket_owners() if new else {}
    for inode, address in new.items():
        if inode not in owners or _is_marked(owners[inode], mark):
            yield f"listening socket {address}"
    yield from (f"/dev/shm/{name}" for name in after.shared_memory - before.shared_memory)
    yield from (f"temporary file {path.name}" for path in temporary.iterdir())


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _socket_owners() -> dict[str, int]:
    """Inode -> pid for every socket that some process holds open."""
    owners = {}
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:["):
                owners[target[8:-1]] = int(path.parts[2])
    return owners


def _is_marked(pid: int, mark: str) -> bool:
    with suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False
