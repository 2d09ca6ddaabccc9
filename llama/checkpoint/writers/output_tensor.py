"""A tensor as it will lie in a new file, made of stored ones and produced a chunk at a time.

Chunks come in the order of the bytes of a contiguous tensor. Where they are written is not known
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llama.checkpoint.files.stored import StoredTensor
from llama.errors import CheckpointError

CHUNK_BYTES = 32 * 2**20
Rearrange = Callable[[Tensor], Tensor]


class Piece(Protocol):
    """Some of the rows of a new tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The rows in order, as contiguous tensors in memory. Raises CheckpointError."""
        ...


@dataclass(frozen=True)
class Rows:
    """All rows of `source`; `rearrange` puts those of every `unit` rows into another order."""

    source: StoredTensor
    rearrange: Rearrange | None = None
    unit: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for start, length in _slices(self.shape, dtype, unit=self.unit):
            rows = torch.empty((length, *self.shape[1:]), dtype=dtype)
            self.source.narrow(0, start, length).read_into(rows)
            yield rows if self.rearrange is None else self.rearrange(rows)


@dataclass(frozen=True)
class Columns:
    """The columns of `sources`, one matrix after the other, as rows' parts: their join's transpose.

    The whole is held in memory: its rows run across every source.
    """

    sources: tuple[StoredTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sources[0].shape[1], sum(source.shape[0] for source in self.sources)

    @property
    def dtype(self) -> torch.dtype:
        return self.sources[0].dtype

    def chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        whole = torch.empty(self.shape, dtype=dtype)  # [in, out]
        targets = torch.split(whole, [source.shape[0] for source in self.sources], 1)
        for source, target in zip(self.sources, targets, strict=True):
            source.read_into(target.t())
        yield whole


@dataclass(frozen=True)
class Repeated:
    """`times` copies of `row`, a matrix of one row."""

    row: StoredTensor
    times: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.times, *self.row.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.row.dtype

    def chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        row = torch.empty(self.row.shape, dtype=dtype)
        self.row.read_into(row)
        for _, length in _slices(self.shape, dtype, unit=1):
            yield row.expand(length, *row.shape[1:]).contiguous()


@dataclass(frozen=True)
class OutputTensor:
    """`pieces` that follow each other along dim 0, all as `dtype`; `name` is for messages."""

    name: str
    pieces: tuple[Piece, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, pieces: Sequence[Piece], dtype: torch.dtype | None) -> OutputTensor:
        """The tensor in `dtype`; None keeps the one that it is stored in."""
        return cls(name, tuple(pieces), pieces[0].dtype if dtype is None else dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order.

        Raises CheckpointError when they cannot be read, or when `dtype` cannot hold a value.
        """
        for piece in self.pieces:
            may_overflow = self.dtype == torch.float16 and piece.dtype != torch.float16
            for chunk in piece.chunks(self.dtype):
                if may_overflow and bool(torch.isinf(chunk).any()):
                    raise CheckpointError(
                        f"{self.name} has values beyond {torch.finfo(self.dtype).max:g}, the "
                        f"largest of float16; convert to bfloat16 or float32"
                    )
                yield memoryview(chunk.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _slices(shape: tuple[int, ...], dtype: torch.dtype, *, unit: int) -> Iterator[tuple[int, int]]:
    """(start, length) along dim 0, in whole units of about CHUNK_BYTES."""
    unit_bytes = max(1, torch.Size(shape[1:]).numel() * dtype.itemsize * unit)
    step = unit * max(1, CHUNK_BYTES // unit_bytes)
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)
