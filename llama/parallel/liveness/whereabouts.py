"""What a rank is doing right now: written by its main thread, read by its heartbeat and last words.

Plain attributes without a lock: a reader may see a step old, never a broken value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

_PLACE = "_llama_place"


class Phase(Enum):
    """Which time limit holds; see `ParallelConfig`."""

    INIT = "INIT"
    """The ranks look for each other and connect."""
    LOAD = "LOAD"
    """Files are opened and read."""
    STEP = "STEP"
    """This rank computes its part of a step, or waits for a neighbour's."""
    WAIT = "WAIT"
    """In a collective call, until the others come or rank 0 has something to do: no limit."""
    IDLE = "IDLE"
    """Between calls: the program has the word. No limit."""


class Whereabouts:
    """`doing` is in words ("loading the checkpoint"); `step`, `layer` and `file` say where in it.

    `waiting_for` names the collective that this rank waits in ("tp all_reduce with rank 1"), None
    while it computes; `awaited` are the ranks of its group, or of the last one's. `n_done` grows
    with everything that was finished: a layer, a tensor, a step.
    """

    def __init__(self) -> None:
        self.phase = Phase.INIT
        self.doing = "starting"
        self.step: int | None = None
        self.layer: int | None = None
        self.file: str | None = None
        self.waiting_for: str | None = None
        self.awaited: Collection[int] = ()
        self.n_done = 0

    @contextmanager
    def during(self, phase: Phase, doing: str) -> Iterator[None]:
        """Be in `phase` for the length of the body. An error takes along where it was raised."""
        before = self.phase, self.doing
        self.phase, self.doing = phase, doing
        self.n_done += 1
        try:
            yield
        except BaseException as error:
            if not hasattr(error, _PLACE):
                with suppress(AttributeError):
                    setattr(error, _PLACE, self.place())
            raise
        finally:
            self.layer = self.step = self.file = None
            self.phase, self.doing = before
            self.n_done += 1

    def at_step(self, step: int) -> None:
        """Begin step number `step` of this rank."""
        self.layer, self.step = None, step
        self.n_done += 1

    def at_layer(self, layer: int) -> None:
        """Begin the layer of global index `layer`."""
        self.layer = layer
        self.n_done += 1

    def at_file(self, file: str) -> None:
        """Begin to read another tensor, of `file`."""
        self.file = file
        self.n_done += 1

    def place(self, error: BaseException | None = None) -> dict[str, Any]:
        """phase, doing, step, layer and file: now, or when `error` left the innermost `during`."""
        now = {
            "phase": self.phase.value,
            "doing": self.doing,
            "step": self.step,
            "layer": self.layer,
            "file": self.file,
        }
        return getattr(error, _PLACE, now)

    def advance(self, _: object = None) -> None:
        """Say that something without a name was finished."""
        self.n_done += 1

    def describe(self) -> str:
        """'STEP (generate, step 41, layer 3)'."""
        return describe_place(self.place())


def describe_place(place: Mapping[str, object]) -> str:
    """The words for `Whereabouts.place`, or for anything else that has its keys."""
    details = [str(place["doing"])]
    details += [f"{name} {place[name]}" for name in ("step", "layer") if place[name] is not None]
    details += [str(place["file"])] if place["file"] is not None else []
    return f"{place['phase']} ({', '.join(details)})"
