"""Everything that a rank says of where it is, in order: more than a heartbeat ever sees."""

from __future__ import annotations

from typing import Any

from llama.parallel.liveness.whereabouts import Whereabouts


class SpiedWhereabouts(Whereabouts):
    """Put in place of a Whereabouts' class: `seen` has a line for each change.

    A line is what `describe` says, then what is waited for, if anything.
    """

    seen: list[str]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        line = self.describe()
        line += f" for {self.waiting_for}" if self.waiting_for else ""
        if line != self.seen[-1]:
            self.seen.append(line)


def spied(whereabouts: Whereabouts) -> list[str]:
    """The list that grows with every change from now on."""
    vars(whereabouts)["seen"] = seen = [whereabouts.describe()]
    whereabouts.__class__ = SpiedWhereabouts
    return seen
