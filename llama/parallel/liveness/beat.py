"""A beat: one line about a rank, written anew every half second; and how silence is counted.

Values in, values out: no threads, no store and no clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields

from llama.parallel.liveness.whereabouts import Phase, describe_place

BEAT_S = 0.5
INCIDENT_S = 1.5
"""A shorter silence is nothing: machines are busy."""


@dataclass(frozen=True)
class Beat:
    """Rank `rank` for the `n`-th time; the other fields are `Whereabouts`'s."""

    rank: int
    host: str
    pid: int
    n: int
    phase: str
    doing: str
    step: int | None
    layer: int | None
    file: str | None
    waiting_for: str | None
    n_done: int

    @property
    def where(self) -> str:
        return describe_place(vars(self))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Beat | None:
        """None for anything else: the store is open to whoever reaches its port."""
        with suppress(ValueError, RecursionError):
            values = json.loads(text)
            if isinstance(values, dict) and set(values) == {field.name for field in fields(cls)}:
                numbers = (values[name] for name in ("rank", "pid", "n", "n_done"))
                texts = (values[name] for name in ("host", "phase", "doing"))
                is_sound = all(type(number) is int for number in numbers)
                is_sound &= all(isinstance(text, str) for text in texts)
                return cls(**values) if is_sound else None
        return None


class Silence:
    """How long each rank that somebody watches has said nothing new.

    Only time between two reads that succeeded counts, and at most two beats of it: a reader that
    was stopped or cut off itself accuses nobody.
    """

    def __init__(self) -> None:
        self._read_at_s: float | None = None
        self._counters: dict[int, int] = {}
        self._silent_s: dict[int, float] = {}
        self._incident: dict[int, float] = {}
        """The longest silence of every rank of the incident under way."""

    def read(self, now_s: float, counters: Mapping[int, int]) -> None:
        """Take note of the `n` of each rank's last beat, as read at `now_s`."""
        passed_s = 0.0
        if self._read_at_s is not None:
            passed_s = min(now_s - self._read_at_s, 2 * BEAT_S)
        self._read_at_s = now_s
        for rank, n in counters.items():
            is_new = self._counters.get(rank) != n
            self._silent_s[rank] = 0.0 if is_new else self._silent_s.get(rank, 0.0) + passed_s
            self._counters[rank] = n
            if self._silent_s[rank] >= INCIDENT_S:
                self._incident[rank] = max(self._incident.get(rank, 0.0), self._silent_s[rank])

    def forget(self, rank: int) -> None:
        """Rank `rank` left well: nothing is expected of it any more."""
        for known in (self._counters, self._silent_s, self._incident):
            known.pop(rank, None)

    def silent_for(self, seconds: float) -> dict[int, float]:
        """The ranks that have been silent for at least `seconds`, and how long."""
        return {rank: s for rank, s in self._silent_s.items() if s >= seconds}

    def ended_incident(self) -> dict[int, float]:
        """Once all ranks of an incident are back: how long each was silent. Else nothing."""
        if any(self._silent_s[rank] > 0 for rank in self._incident):
            return {}
        ended, self._incident = self._incident, {}
        return ended


class Stopwatch:
    """For how many seconds something has been as it is, this process's own pauses left out."""

    def __init__(self) -> None:
        self._value: object = None
        self.seconds = 0.0

    def observe(self, value: object, passed_s: float) -> float:
        """Seconds since `value` was first seen; `passed_s` went by since the last call."""
        self.seconds = self.seconds + passed_s if value == self._value else 0.0
        self._value = value
        return self.seconds


def standstill(beats: Collection[Beat]) -> tuple[int, ...] | None:
    """What every rank has done, when all of them wait for one another in a step; else None."""
    if all(beat.phase == Phase.STEP.value and beat.waiting_for for beat in beats):
        return tuple(beat.n_done for beat in beats)
    return None


def describe_incident(silent_s: Mapping[int, float], hosts: Mapping[int, str]) -> str:
    """'ranks 2, 3 (hostB) were silent for 2.6 s; they are back'."""
    ranks = sorted(silent_s)
    names = ", ".join(map(str, ranks))
    where = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))
    length_s = max(silent_s.values())
    if len(ranks) == 1:
        return f"rank {names} ({where}) was silent for {length_s:.1f} s; it is back"
    return f"ranks {names} ({where}) were silent for {length_s:.1f} s; they are back"


def describe_waits(beats: Iterable[Beat]) -> str:
    """What each rank waits for, or where it is."""
    return "; ".join(
        f"rank {beat.rank} ({beat.host}) waits for {beat.waiting_for}"
        if beat.waiting_for
        else f"rank {beat.rank} ({beat.host}) is in {beat.where}"
        for beat in beats
    )
