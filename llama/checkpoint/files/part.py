"""What a full tensor is made of: a piece that lies in a file, or one that is in memory already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Part(Protocol):
    """A dense tensor whose elements are somewhere else until they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def path(self) -> Path | None:
        """The file that holds it; None for memory."""
        ...

    def view(self, change: Callable[[Tensor], Tensor]) -> Part:
        """The same elements as `change`, a function that returns a view, shows them."""
        ...

    def extents(self) -> list[tuple[int, int]]:
        """The byte ranges of the file that reading takes in, sorted, none touching another."""
        ...

    @property
    def hull(self) -> tuple[int, int]:
        """The first byte of the file that holds an element, and the one after the last."""
        ...

    @property
    def file_order(self) -> tuple[int, ...]:
        """The dims as the file nests them: the one whose items lie furthest apart comes first."""
        ...

    def read_into(self, out: Tensor) -> int:
        """Fill `out`, of the same shape, converting to its dtype and device.

        Returns the bytes taken from the file. Raises CheckpointError when they are not there.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@dataclass(frozen=True)
class MemoryTensor:
    """A part that is in memory; a state dict holds such."""

    tensor: Tensor
    path: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def view(self, change: Callable[[Tensor], Tensor]) -> MemoryTensor:
        return MemoryTensor(change(self.tensor))

    def extents(self) -> list[tuple[int, int]]:
        return []

    @property
    def hull(self) -> tuple[int, int]:
        return (0, 0)

    @property
    def file_order(self) -> tuple[int, ...]:
        return tuple(range(self.tensor.dim()))

    @torch.no_grad()
    def read_into(self, out: Tensor) -> int:
        out.copy_(self.tensor)
        return 0

    def close(self) -> None:
        pass
