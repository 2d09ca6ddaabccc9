"""One measured quantity of one contestant: its samples, and the machine's limit for each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama.bench.contestant import Contestant


@dataclass(frozen=True)
class Figure:
    """One sample a round. `limits` are what the machine could have done in the same round, in the
    same unit; empty where there is no limit. `metric` is a work's name, or says what it is.
    """

    case: str
    shape: str
    contestant: Contestant
    metric: str
    unit: str
    samples: Sequence[float]
    limits: Sequence[float] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def share(self) -> float | None:
        """Of the limit, the median over rounds."""
        if len(self.limits) < len(self.samples):  # a round's limits may have failed
            return None
        pairs = zip(self.samples, self.limits, strict=True)
        return statistics.median(sample / limit for sample, limit in pairs)

    def as_json(self) -> dict[str, Any]:
        """With what is derived, for readers that are no Python."""
        return asdict(self) | {
            "name": self.contestant.name,
            "median": self.median,
            "least": min(self.samples),
            "most": max(self.samples),
            "share_of_limit": self.share,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Figure:
        return cls(
            case=values["case"],
            shape=values["shape"],
            contestant=Contestant(**values["contestant"]),
            metric=values["metric"],
            unit=values["unit"],
            samples=tuple(values["samples"]),
            limits=tuple(values["limits"]),
        )
