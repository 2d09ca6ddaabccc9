"""Programs as real processes with a deadline; nothing that a test starts outlives it.

Ranks have sessions of their own, which no process group covers: they are found as descendants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with the checkout importable and no trace of another launch.

    None among `changes` takes a variable away.
    """
    stale = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "LLAMA_", "TORCHELASTIC_", "LOGLEVEL")
    stale += ("SLURM_", "OMPI_", "PMI", "MPI_LOCAL", "LWS_")
    clean = {name: text for name, text in os.environ.items() if not name.startswith(stale)}
    clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [clean.get("PYTHONPATH")])])
    merged = {**clean, **changes}
    return {name: text for name, text in merged.items() if text is not None}


@contextmanager
def started(
    words: Sequence[str], *, env: Mapping[str, str | None] | None = None, cwd: Path = ROOT
) -> Iterator[subprocess.Popen[str]]:
    """`python words...` with all three streams as pipes; what is left at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(env or {}),
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def run(
    words: Sequence[str],
    *,
    stdin: str = "",
    env: Mapping[str, str | None] | None = None,
    cwd: Path = ROOT,
    deadline_s: float = 90,
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` to its end. At the deadline: TimeoutExpired, and nothing is left."""
    with started(words, env=env, cwd=cwd) as process:
        stdout, stderr = process.communicate(stdin, timeout=deadline_s)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = [pid]
    table = process_table()
    for parent in found:
        found.extend(child for child, (of, _) in table.items() if of == parent)
    return found[1:]


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that nobody has collected does not."""
    _, state = process_table().get(pid, (0, "Z"))
    return state not in "ZX"


def process_table() -> dict[int, tuple[int, str]]:
    """Parent and state letter of every process; from /proc where there is one, else from ps."""
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-axo", "pid=,ppid=,stat="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        rows = [line.split() for line in listed.stdout.splitlines()]
        return {int(pid): (int(parent), state[0]) for pid, parent, state in rows}
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            table[int(stat.parent.name)] = (int(parent), state)
    return table


def wait_until(condition: Callable[[], bool], *, deadline_s: float = 60, what: str) -> None:
    """Poll `condition()` until it is true; TimeoutError that says `what` was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        time.sleep(0.05)
