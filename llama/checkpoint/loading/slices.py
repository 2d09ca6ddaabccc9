"""What the parameters of a stage are cut from: names of tensors, and a region of each.

It compares that with what a checkpoint has; it reads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.wording import dtype_name, shortened
from llama.errors import CheckpointError
from llama.parallel.shard import Piece, Shard


@dataclass(frozen=True)
class Slices:
    """Path of each parameter, a piece that it holds, and the full name of that piece's tensor."""

    rows: tuple[tuple[str, Piece, str], ...]

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, nn.Parameter]]) -> Slices:
        rows = []
        for path, parameter in parameters:
            shard: Shard = vars(parameter)["shard"]
            # A piece's source is relative to the module that owns the layer: two names up from the
            # parameter.
            owner = path.rsplit(".", 2)[0] + "." if path.count(".") > 1 else ""
            rows += [(path, piece, owner + piece.source) for piece in shard.pieces]
        return cls(tuple(rows))

    @property
    def names(self) -> set[str]:
        return {name for _, _, name in self.rows}

    def dtypes(self, reader: CheckpointReader) -> dict[str, int]:
        """How many tensors are stored in which dtype, the most frequent first."""
        counts = Counter(dtype_name(reader.tensors[name].dtype) for name in self.names)
        return dict(counts.most_common())

    def check(self, reader: CheckpointReader, all_names: Iterable[str]) -> None:
        """Raises CheckpointError unless `reader` has `all_names` and these, in these shapes."""
        self._check_names(reader, {*all_names, *self.names})
        for path, piece, name in self.rows:
            stored = reader.tensors[name]
            if stored.shape != piece.full_shape:
                where = shortened(file.name for file in stored.paths) or "memory"
                raise CheckpointError(
                    f"{name} ({where}) has shape {stored.shape}, but {path} is cut from "
                    f"{piece.full_shape}; weights and configuration are not of one model"
                )

    @staticmethod
    def _check_names(reader: CheckpointReader, needed: set[str]) -> None:
        missing = sorted(needed - reader.tensors.keys())
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} of the {len(needed)} tensors of this model: "
                f"{shortened(missing)}; it is incomplete, or its configuration is of another one"
            )
        unused = sorted(reader.tensors.keys() - needed)
        if unused:
            raise CheckpointError(
                f"the checkpoint has {len(unused)} tensors that this model would not use: "
                f"{shortened(unused)}; its weights or its configuration are of another model"
            )
