"""A full tensor that lies in parts in one or several files, and how a slice of it is copied out.

It does not know formats: whoever opened the files says which part stands where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.checkpoint.reader import TensorInfo


@dataclass(frozen=True)
class StoredTensor:
    """The tensor of `info`, as `parts` that follow each other along `dim`; None means one part."""

    info: TensorInfo
    parts: tuple[Tensor, ...]
    dim: int | None = None

    @classmethod
    def of(cls, parts: Sequence[Tensor], files: Sequence[str], *, dim: int | None) -> StoredTensor:
        """`parts` from `files`, one each, joined along `dim`."""
        shape = list(parts[0].shape)
        if dim is not None:
            shape[dim] = sum(part.shape[dim] for part in parts)
        info = TensorInfo(tuple(shape), parts[0].dtype, tuple(files))
        return cls(info, tuple(parts), dim)

    @torch.no_grad()
    def read_into(self, out: Tensor, *, dim: int | None = None, start: int = 0) -> int:
        """Copy the tensor, or out.shape[dim] items of its dim `dim` from `start`, into `out`.

        Converts to out's dtype and device, part by part. Returns the bytes taken from the files.
        """
        expected = list(self.info.shape)
        if dim is not None:
            expected[dim] = min(out.shape[dim], expected[dim] - start)
        if list(out.shape) != expected or start < 0:
            raise ValueError(
                f"{tuple(out.shape)} is no slice of {self.info.shape} from {start} of dim {dim}"
            )
        if self.dim is None:
            return _copy(out, self.parts[0], dim, start)
        bytes_read, offset = 0, 0
        for part in self.parts:
            size = part.shape[self.dim]
            if dim == self.dim:
                first, last = max(start, offset), min(start + out.shape[dim], offset + size)
                if first < last:
                    target = out.narrow(dim, first - start, last - first)
                    bytes_read += _copy(target, part, dim, first - offset)
            else:
                bytes_read += _copy(out.narrow(self.dim, offset, size), part, dim, start)
            offset += size
        return bytes_read


def _copy(out: Tensor, source: Tensor, dim: int | None, start: int) -> int:
    if dim is not None:
        source = source.narrow(dim, start, out.shape[dim])
    out.copy_(source)
    return source.numel() * source.element_size()
