"""A full tensor that lies in parts in one or several files, and how a slice of it is read.

It does not know formats: whoever opened the files says which part stands where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint.files.part import Part


@dataclass(frozen=True)
class StoredTensor:
    """`parts` that follow each other along `dim`; None means that there is only one."""

    parts: tuple[Part, ...]
    dim: int | None = None

    @classmethod
    def of(cls, parts: Sequence[Part], *, dim: int | None = None) -> StoredTensor:
        """`parts` of one dtype, joined along `dim`, in which alone they may differ in size."""
        assert parts and (dim is not None or len(parts) == 1), (len(parts), dim)
        return cls(tuple(parts), dim if len(parts) > 1 else None)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        if self.dim is not None:
            shape[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold it, each once; none for memory."""
        return tuple(dict.fromkeys(part.path for part in self.parts if part.path is not None))

    def narrow(self, dim: int, start: int, length: int) -> StoredTensor:
        """`length` items of dim `dim` from `start`. Nothing is read."""
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise ValueError(
                f"items {start} to {start + length} are not all in dim {dim} of {self.shape}"
            )
        if dim != self.dim:
            parts = tuple(_narrowed(part, dim, start, length) for part in self.parts)
            return StoredTensor(parts, self.dim)
        found: list[Part] = []
        offset = 0
        for part in self.parts:
            size = part.shape[dim]
            first, last = max(start, offset), min(start + length, offset + size)
            if first < last:
                found.append(_narrowed(part, dim, first - offset, last - first))
            offset += size
        return StoredTensor.of(found or [_narrowed(self.parts[0], dim, 0, 0)], dim=dim)

    def read_into(self, out: Tensor) -> int:
        """Fill `out`, of the same shape, part by part; see Part.read_into."""
        if tuple(out.shape) != self.shape:
            raise ValueError(f"{tuple(out.shape)} cannot hold a tensor of shape {self.shape}")
        if self.dim is None:
            return self.parts[0].read_into(out)
        sizes = [part.shape[self.dim] for part in self.parts]
        targets = torch.split(out, sizes, self.dim)
        return sum(part.read_into(to) for part, to in zip(self.parts, targets, strict=True))

    def extents(self) -> list[tuple[Path, int, int]]:
        """The byte ranges (file, begin, end) that reading takes in."""
        return [
            (part.path, begin, end)
            for part in self.parts
            if part.path is not None
            for begin, end in part.extents()
        ]

    def close(self) -> None:
        """Let go of the files."""
        for part in self.parts:
            part.close()


def _narrowed(part: Part, dim: int, start: int, length: int) -> Part:
    return part.view(lambda geometry: geometry.narrow(dim, start, length))
