"""A launched job under observation: what it prints and when, its ranks' pids, and who is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.faults.case import CaseFailed
from tests.faults.leftovers import lives

DEADLINE_S = 90.0
POLL_S = 0.01


@dataclass(frozen=True)
class Line:
    time_s: float
    stream: str
    text: str


class Job:
    """`process` is the launcher, both its streams pipes; ranks leave their pids in `folder`."""

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, *, slack: float = 1.0
    ) -> None:
        self.process = process
        self.folder = folder
        self._slack = slack
        self._lines: list[Line] = []
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip("\n")
                self._lines.append(Line(time.monotonic(), name, text))

    # -- what it printed ---------------------------------------------------------------------

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in list(self._lines))

    def lines(self, stream: str) -> list[str]:
        return [line.text for line in list(self._lines) if line.stream == stream]

    def find(self, pattern: str) -> Line | None:
        """The first line in which `pattern` is found."""
        return next((line for line in list(self._lines) if re.search(pattern, line.text)), None)

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line.text)) for line in list(self._lines))

    def wait_for(self, pattern: str, *, n: int = 1, deadline_s: float = DEADLINE_S) -> Line:
        """The first line with `pattern`, as soon as `n` of them are there."""
        end = time.monotonic() + deadline_s
        while self.count(pattern) < n:
            has_ended = self.process.poll() is not None
            if has_ended:
                self._join()
            if (has_ended and self.count(pattern) < n) or time.monotonic() > end:
                raise self.failed(f"waited for {pattern!r}")
            time.sleep(POLL_S)
        line = self.find(pattern)
        assert line is not None
        return line

    def require(self, pattern: str, *, what: str) -> str:
        """The first line with `pattern`; CaseFailed that says `what` is missing."""
        line = self.find(pattern)
        if line is None:
            raise self.failed(f"no line shows {what} ({pattern!r})")
        return line.text

    def check(self, condition: bool, what: str) -> None:
        if not condition:
            raise self.failed(what)

    def failed(self, what: str) -> CaseFailed:
        shown = [line for line in self.text.splitlines() if not re.search(r"token \d+$", line)]
        tail = "\n".join(f"    | {line}" for line in shown[-40:])
        return CaseFailed(f"{what}; {self.codes}\n{tail}")

    # -- its processes -----------------------------------------------------------------------

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> pid of those that have begun."""
        paths = self.folder.glob("rank-*.pid")
        return {int(path.stem.partition("-")[2]): int(path.read_text()) for path in sorted(paths)}

    def wait_for_ranks(self, n_ranks: int, *, deadline_s: float = DEADLINE_S) -> dict[int, int]:
        end = time.monotonic() + deadline_s
        while len(self.ranks) < n_ranks:
            if time.monotonic() > end:
                raise self.failed(f"waited for {n_ranks} ranks")
            time.sleep(POLL_S)
        return self.ranks

    def exit_code(self, rank: int) -> int | None:
        """None for a rank that runs, or that a signal ended."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / f"rank-{rank}.exit").read_text())
        return None

    @property
    def codes(self) -> str:
        """'launcher 137; ranks 69, -': a dash for a rank that a signal ended."""
        codes = [self.exit_code(rank) for rank in self.ranks]
        ranks = ", ".join("-" if code is None else str(code) for code in codes)
        return f"launcher {self.process.returncode}" + (f"; ranks {ranks}" if ranks else "")

    def signal(self, pid: int, signum: signal.Signals) -> float:
        """Send it; the time, on the clock of `wait_gone`."""
        began = time.monotonic()
        os.kill(pid, signum)
        return began

    def wait_gone(
        self, pids: Iterable[int], *, since: float, limit_s: float, who: str = "the survivors"
    ) -> float:
        """Seconds from `since` until none of `pids` lives; CaseFailed above `limit_s`."""
        limit_s *= self._slack
        living = set(pids)
        while living := {pid for pid in living if lives(pid)}:
            if time.monotonic() - since > limit_s:
                raise self.failed(
                    f"{who} ({len(living)} pids) live {limit_s:.0f} s after the fault"
                )
            time.sleep(POLL_S)
        return time.monotonic() - since

    def wait_end(self, *, deadline_s: float = DEADLINE_S) -> int:
        """The launcher's exit status."""
        try:
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise self.failed(f"the launcher has not ended within {deadline_s:.0f} s") from None
        self._join()
        return self.process.returncode

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(5)  # longer only when somebody has inherited the pipe and lives on
