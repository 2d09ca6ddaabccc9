"""What every program of the scoreboard does first and last: leave its pid, and how it ended.

The launcher collects its ranks itself, so nobody else can ask the kernel for their exit codes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def observed(folder: Path) -> Iterator[int]:
    """Yield this process's rank. Its pid is in `folder` from here on, its exit code at the end.

    A process that a signal ends leaves no exit code.
    """
    rank = int(os.environ.get("RANK", "0"))
    exit_file, leave = folder / f"rank-{rank}.exit", os._exit

    def leave_word(code: int) -> None:
        exit_file.write_text(str(code))
        leave(code)

    os._exit = leave_word  # type: ignore[assignment]
    partial = folder / f"rank-{rank}.partial"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / f"rank-{rank}.pid")
    code: int | str | None = 1
    try:
        yield rank
        code = 0
    except SystemExit as end:
        code = end.code or 0
        raise
    finally:
        exit_file.write_text(str(code))


def say(line: str) -> None:
    """A line that the scoreboard waits for; in one write, as other ranks share the pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
