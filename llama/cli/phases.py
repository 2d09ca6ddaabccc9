"""Where the seconds went until a model's first token, of one rank.

Knows processes and clocks. A phase that cannot be told (off Linux, or by this rank) is None.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

LAUNCHER_PID = "LLAMA_LAUNCHER_PID"
_HAS_PROC = hasattr(time, "CLOCK_BOOTTIME")


@dataclass(frozen=True)
class Phases:
    """Seconds one after the other: the launcher, which may import torch for all; this rank's own
    imports; meeting the other ranks and building the model; reading weights; and from there to the
    first token, which the rank knows that draws it.
    """

    rank: int
    launch_s: float | None
    import_s: float | None
    meet_s: float
    load_s: float
    first_token_s: float | None

    def __str__(self) -> str:
        named = {
            "launch": self.launch_s,
            "import": self.import_s,
            "meet": self.meet_s,
            "load": self.load_s,
            "first token": self.first_token_s,
        }
        known = [f"{name} {took_s:.2f} s" for name, took_s in named.items() if took_s is not None]
        return f"rank {self.rank}: {', '.join(known)}"


class StartClock:
    """Made before the model is loaded, told when that is done."""

    def __init__(self) -> None:
        import_module("llama.llm")  # now, to tell imports from what they are for
        self._imported_at = _now()
        own = _started_at(os.getpid())
        launcher = _started_at(int(os.environ.get(LAUNCHER_PID) or 0))
        self._import_s = None if own is None else self._imported_at - own
        self._launch_s = None if own is None or launcher is None else own - launcher
        self.built()

    def built(self) -> None:
        """The model is loaded."""
        self._built_s = _now() - self._imported_at
        self._built_at = time.perf_counter()

    def phases(self, *, rank: int, load_s: float, first_token_at: float | None) -> Phases:
        """`load_s` of the time until `built` is that of the weights."""
        return Phases(
            rank=rank,
            launch_s=self._launch_s,
            import_s=self._import_s,
            meet_s=max(0.0, self._built_s - load_s),
            load_s=load_s,
            first_token_s=None if first_token_at is None else first_token_at - self._built_at,
        )


def _now() -> float:
    """By the clock that /proc counts by, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _HAS_PROC else time.monotonic()


def _started_at(pid: int) -> float | None:
    """When the process began, by the clock of `_now`: proc(5), field 22 of stat."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return None
