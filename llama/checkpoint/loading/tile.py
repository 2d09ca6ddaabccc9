"""A region of a stored tensor that is read at once, and the memory that it passes through.

It does not know ranks, nor what the region is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from llama.checkpoint.files.part import Part
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.loading.box import Box


@dataclass(frozen=True)
class Tile:
    """What `box` of the full tensor `tensor` (a number) is; `part` holds exactly that."""

    tensor: int
    box: Box
    part: Part

    @property
    def nbytes(self) -> int:
        return self.part.nbytes

    def sub(self, box: Box) -> Tile:
        """What `box` of the full tensor is, all of it in this tile."""
        where = box.within(self.box)
        return Tile(self.tensor, box, self.part.view(lambda geometry: geometry[where]))

    def cut(self, limit_bytes: int) -> Iterator[Tile]:
        """Tiles of at most so many bytes, each as contiguous in the file as can be."""
        items = max(1, limit_bytes // self.part.dtype.itemsize)
        for box in self.box.cut(items, order=self.part.file_order):
            yield self.sub(box)

    def lying_in(self, raw: Tensor) -> Tensor:
        """The tile's elements as they lie in the bytes `raw`, in the order of the file.

        In this order reading needs no other memory.
        """
        order = self.part.file_order
        shape = self.part.shape
        flat = raw[: self.nbytes].view(self.part.dtype)
        nested = flat.view([shape[dim] for dim in order])
        return nested.permute([order.index(dim) for dim in range(len(order))])


def tiles(tensor: int, stored: StoredTensor) -> Iterator[Tile]:
    """Each part of the full tensor number `tensor`."""
    whole = Box.whole(stored.shape)
    offset = 0
    for part in stored.parts:
        if stored.dim is None:
            yield Tile(tensor, whole, part)
            continue
        stop = offset + part.shape[stored.dim]
        yield Tile(tensor, whole.narrow(stored.dim, offset, stop), part)
        offset = stop
