"""What loading a checkpoint cost one rank, in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from llama.checkpoint.wording import shortened, sized


@dataclass(frozen=True)
class LoadReport:
    """What rank `rank` loaded: `bytes_held` in its parameters, `bytes_read` from files by itself,
    `bytes_handed` to it by other ranks of its host.

    `peak_bytes` is host memory at its highest over what it was before loading, weights included;
    `dtypes` counts the tensors by the dtype they are stored in.
    """

    rank: int
    n_tensors: int
    bytes_held: int
    bytes_read: int
    bytes_handed: int
    seconds: float
    peak_bytes: int
    dtypes: Mapping[str, int]
    ignored: Mapping[str, str]

    @property
    def gb_per_s(self) -> float:
        """What this rank took from files, in 1e9 bytes a second."""
        return self.bytes_read / 1e9 / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "gb_per_s": self.gb_per_s})

    @classmethod
    def from_json(cls, text: str) -> LoadReport:
        fields = json.loads(text)
        del fields["gb_per_s"]
        return cls(**fields)

    def __str__(self) -> str:
        stored = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        return (
            f"rank {self.rank}: {self.n_tensors} tensors ({stored}), "
            f"holds {sized(self.bytes_held)}, read {sized(self.bytes_read)} and "
            f"was handed {sized(self.bytes_handed)} in {self.seconds:.1f} s "
            f"({self.gb_per_s:.2f} GB/s), peak {sized(self.peak_bytes)}"
            + (f", ignored {shortened(self.ignored)}" if self.ignored else "")
        )
