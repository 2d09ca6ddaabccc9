"""A whole run as one JSON document, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama.bench.bars import Bar, Verdict, judge
from llama.bench.figure import Figure
from llama.bench.machine import MachineFacts
from llama.errors import CheckpointError, OutputError

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """`limits` and `collectives` are rows; `failures` says in a line each what was not measured."""

    date: str
    elapsed_s: float
    machine: MachineFacts
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    figures: Sequence[Figure]
    limits: Sequence[Mapping[str, Any]] = ()
    collectives: Sequence[Mapping[str, Any]] = ()
    agreements: Sequence[str] = ()
    failures: Sequence[str] = field(default=())

    def verdicts(self, bars: Sequence[Bar]) -> list[Verdict]:
        return [judge(bar, self.figures) for bar in bars]

    def save(self, path: Path, *, bars: Sequence[Bar]) -> None:
        """Raises OutputError."""
        values = {
            "format": FORMAT,
            **asdict(self),
            "figures": [figure.as_json() for figure in self.figures],
            "bars": [verdict.as_json() for verdict in self.verdicts(bars)],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises CheckpointError for a file that is no result of this format."""
        try:
            values = json.loads(path.read_text())
            if values.pop("format") != FORMAT:
                raise CheckpointError(f"{path} is a result of another version; measure again")
            values.pop("bars")
            machine = values["machine"]
            machine["instructions"] = tuple(machine["instructions"])
            values["machine"] = MachineFacts(**machine)
            values["figures"] = [Figure.from_json(figure) for figure in values["figures"]]
            return cls(**values)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{path} is no result of llama bench --json") from None
