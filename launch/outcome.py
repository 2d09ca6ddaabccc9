"""How a job ended: every rank's end, which of them came first, and one exit status for all."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from llama.errors import LlamaError, PeerLostError

PIPE_CLOSED = 128 + 13
"""Exit status of a program whose output nobody reads on, as of one that SIGPIPE ended."""


@dataclass(frozen=True)
class RankEnd:
    """`exit_code` is minus the signal for a killed rank; `time_s` is of a monotonic clock.

    `was_told` says that the launcher had begun to end the job.
    """

    rank: int
    exit_code: int
    time_s: float
    pid: int = 0
    was_told: bool = False

    @property
    def status(self) -> int:
        """As a shell shows it."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


@dataclass(frozen=True)
class Outcome:
    """What became of the ranks of this launcher.

    `stopped_by` is the signal that ended them all, `lost` says which other launcher is gone.
    """

    ends: tuple[RankEnd, ...] = ()
    stopped_by: signal.Signals | None = None
    lost: str | None = None

    @property
    def cause(self) -> RankEnd | None:
        """The rank whose end is to be reported; None when all ended well."""
        failures = [end for end in self.ends if end.exit_code != 0]
        return first_cause(failures) if failures else None

    @property
    def exit_code(self) -> int:
        """0, or of what came first."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        if self.lost is not None:
            return PeerLostError.exit_code
        return self.cause.status if self.cause else 0


def first_cause(failures: Sequence[RankEnd]) -> RankEnd:
    """The failure to report: ranks that only lost a peer, or were ended with the job, come last."""

    def order(end: RankEnd) -> tuple[bool, bool, float, int]:
        is_consequence = end.exit_code in (PeerLostError.exit_code, -signal.SIGTERM)
        return end.was_told, is_consequence, end.time_s, end.rank

    return min(failures, key=order)


def describe(end: RankEnd, *, host: str) -> str:
    """One line on how the rank ended."""
    return f"rank {end.rank} ({host}) {manner_of(end)}"


def manner_of(end: RankEnd) -> str:
    """'was killed by SIGSEGV' or 'exited with 65 (CheckpointError)'."""
    if end.exit_code < 0:
        names = {known.value: known.name for known in signal.Signals}
        name = names.get(-end.exit_code, f"signal {-end.exit_code}")
        hint = "; if nobody did that, it ran out of memory" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    meaning = {error.exit_code: error.__name__ for error in LlamaError.__subclasses__()}
    meaning[LlamaError.exit_code] = "unexpected error"
    known = meaning.get(end.exit_code)
    return f"exited with {end.exit_code}" + (f" ({known})" if known else "")
