"""A dense tensor that lies in a file: where its elements are, and how they come into memory.

The geometry is a tensor on the meta device, which has shape and strides but no memory, so every
view that torch knows (transpose, narrow, select, unflatten) tells where its elements lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint.files.data_file import DataFile
from llama.errors import CheckpointError

STAGING_BYTES = 16 * 2**20
"""The most that one request takes in when it cannot go straight to where it belongs."""
MAX_GAP_BYTES = 64 * 2**10
"""Rows that lie further apart than this are fetched one by one, nearer ones together."""


@dataclass(frozen=True)
class FileTensor:
    """The elements that `geometry` addresses in a storage that begins at byte `offset`."""

    file: DataFile
    offset: int
    geometry: Tensor

    @classmethod
    def of(
        cls,
        file: DataFile,
        offset: int,
        *,
        dtype: torch.dtype,
        shape: Sequence[int],
        stride: Sequence[int] | None = None,
        storage_offset: int = 0,
        name: str = "a tensor",
    ) -> FileTensor:
        """The tensor as a file declares it; stride and storage_offset count elements.

        Raises CheckpointError, which calls the tensor `name`, unless all of it lies in the file.
        """
        stride = _contiguous(shape) if stride is None else tuple(stride)
        n_elements = math.prod(max(size, 1) for size in shape)  # torch multiplies zeros last
        numbers = (offset, storage_offset, n_elements, *shape, *stride)
        if len(stride) != len(shape) or not all(0 <= number < 2**62 for number in numbers):
            raise CheckpointError(f"{file.path}: {name} has no possible shape: {shape}, {stride}")
        end = offset
        if 0 not in shape:
            last = storage_offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            end += (last + 1) * dtype.itemsize
            if n_elements * dtype.itemsize > file.size:  # elements in one place, without end
                raise CheckpointError(
                    f"{file.path}: {name} has no possible shape: {shape}, {stride} in "
                    f"{file.size:,} bytes"
                )
        if end > file.size:
            raise CheckpointError(
                f"{file.path} is truncated or damaged: {name} would end at byte {end:,} of "
                f"{file.size:,}"
            )
        storage = torch.empty(0, dtype=dtype, device="meta")
        return cls(file, offset, storage.as_strided(tuple(shape), stride, storage_offset))

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.geometry.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.geometry.dtype

    @property
    def nbytes(self) -> int:
        return self.geometry.numel() * self.geometry.element_size()

    def view(self, change: Callable[[Tensor], Tensor]) -> FileTensor:
        """The same elements as `change`, a function that returns a view, shows them."""
        changed = change(self.geometry)
        assert changed._is_view() or changed is self.geometry, "would have to copy"
        return FileTensor(self.file, self.offset, changed)

    def extents(self) -> list[tuple[int, int]]:
        """The byte ranges of the file that reading takes in, sorted, none touching another."""
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(self._extent(request) for request, _ in _requests(self.geometry)):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        return merged

    @property
    def hull(self) -> tuple[int, int]:
        """The first byte of the file that holds an element, and the one after the last."""
        if self.geometry.numel() == 0:
            return self.offset, self.offset
        return self._extent(self.geometry)

    @property
    def file_order(self) -> tuple[int, ...]:
        """The dims as the file nests them: the one whose items lie furthest apart comes first."""
        return _file_order(self.geometry)

    @torch.no_grad()
    def read_into(self, out: Tensor) -> int:
        """Fill `out`, of the same shape, converting to its dtype and device.

        Returns the bytes taken from the file. Raises CheckpointError when they are not there.
        """
        if tuple(out.shape) != self.shape:
            raise ValueError(f"{tuple(out.shape)} cannot hold a tensor of shape {self.shape}")
        bytes_read = 0
        staging = torch.empty(0, dtype=torch.uint8)
        for request, target in _requests(self.geometry, out):
            begin, end = self._extent(request)
            if _is_same_memory(request, target):
                self.file.read_into(_memory(target.view(-1).view(torch.uint8)), begin)
            else:
                if staging.numel() < end - begin:
                    staging = torch.empty(end - begin, dtype=torch.uint8)
                raw = staging[: end - begin]
                self.file.read_into(_memory(raw), begin)
                elements = raw.view(self.dtype)
                target.copy_(elements.as_strided(request.shape, request.stride(), 0))
            bytes_read += end - begin
        return bytes_read

    def close(self) -> None:
        self.file.close()

    def _extent(self, request: Tensor) -> tuple[int, int]:
        size = request.element_size()
        begin = self.offset + int(request.storage_offset()) * size
        return begin, begin + _span(request) * size


def _requests(geometry: Tensor, out: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The parts of `geometry`, and of `out` alike, that one request each fetches."""
    if geometry.numel() == 0:
        return
    out = geometry if out is None else out
    if geometry.dim() == 0:
        geometry, out = geometry.view(1), out.view(1)
    order = _file_order(geometry)
    yield from _in_file_order(geometry.permute(order), out.permute(order))


def _in_file_order(geometry: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    n_items, pitch = geometry.shape[0], geometry.stride(0) * geometry.element_size()
    item_bytes = _span(geometry[0]) * geometry.element_size()
    if _is_same_memory(geometry, out):
        yield geometry, out
        return
    if n_items == 1 and geometry.dim() > 1:
        yield from _in_file_order(geometry[0], out[0])
        return
    n_together = 1
    if pitch - item_bytes <= MAX_GAP_BYTES:
        n_together = max(1, 1 + (STAGING_BYTES - item_bytes) // max(pitch, 1))
    for first in range(0, n_items, n_together):
        size = min(n_together, n_items - first)
        part, target = geometry.narrow(0, first, size), out.narrow(0, first, size)
        if size == 1 and geometry.dim() > 1:
            yield from _in_file_order(part, target)
        else:
            yield part, target


def _is_same_memory(geometry: Tensor, out: Tensor) -> bool:
    """Whether the bytes of `geometry` are those that `out` is to hold, in the same order."""
    return (
        geometry.is_contiguous()
        and out.is_contiguous()
        and out.dtype == geometry.dtype
        and out.device.type in ("cpu", "meta")
    )


def _file_order(geometry: Tensor) -> tuple[int, ...]:
    strides = geometry.stride()
    return tuple(sorted(range(len(strides)), key=lambda dim: -strides[dim]))


def _span(geometry: Tensor) -> int:
    """Elements from the first to the last, both included."""
    sizes = zip(geometry.shape, geometry.stride(), strict=True)
    return int(1 + sum((size - 1) * stride for size, stride in sizes))


def _memory(raw: Tensor) -> memoryview:
    return memoryview(raw.numpy())  # type: ignore[arg-type]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
