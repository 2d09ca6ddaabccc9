"""What a case of the scoreboard is: a fault, what must happen, and a function that tries it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.faults.scene import Scene

Kind = Literal["killed", "stopped", ""]
"""Whose detection time counts towards which percentile."""


class CaseFailed(Exception):
    """Something that must happen did not, or the other way round; the message has the output."""


@dataclass(frozen=True)
class Outcome:
    """One fault that ended as it must.

    `detect_s` is the time from the fault to the end of the last survivor, None where nothing had
    to be detected. `line` is what named the cause.
    """

    codes: str
    line: str
    detect_s: float | None = None


@dataclass(frozen=True)
class Case:
    """`run` tries the fault once in each of its variants; it raises CaseFailed."""

    id: str
    done: str
    must: str
    run: Callable[[Scene], list[Outcome]]
    kind: Kind = ""
