"""What a fresh process is told to measure, and what it says, both as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama.bench.contestant import Contestant
from llama.bench.work import Event, Trace, Work

Program = Literal["works", "overhead", "limits", "collectives"]


@dataclass(frozen=True)
class Task:
    """`model` is a folder for torch's engines, a GGUF file for llama.cpp; unused by "limits".

    `device` is "cpu" or "cuda". `read_bytes` is how much memory is read for its limit. `effort`
    scales what has no work to say how long it takes.
    """

    program: Program
    contestant: Contestant
    model: Path
    device: str = "cpu"
    works: Sequence[Work] = ()
    read_bytes: int = 2**29
    effort: float = 1.0

    def save(self, path: Path) -> None:
        values = asdict(self) | {"model": str(self.model)}
        path.write_text(json.dumps(values))

    @classmethod
    def load(cls, path: Path) -> Task:
        values: dict[str, Any] = json.loads(path.read_text())
        values["contestant"] = Contestant(**values["contestant"])
        values["works"] = tuple(Work(**work) for work in values["works"])
        values["model"] = Path(values["model"])
        return cls(**values)

    @property
    def most_tokens(self) -> int:
        """The longest sequence of any work."""
        return max(work.most_tokens for work in self.works)

    @property
    def most_rows(self) -> int:
        return max(work.batch for work in self.works)


@dataclass(frozen=True)
class Measured:
    """What one rank found: traces by work on rank 0 only, single figures by name on every rank."""

    traces: Mapping[str, Trace] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Measured:
        values: dict[str, Any] = json.loads(path.read_text())
        values["traces"] = {
            name: Trace(tuple(Event(**event) for event in trace["events"]), trace["token_ids"])
            for name, trace in values["traces"].items()
        }
        return cls(**values)
