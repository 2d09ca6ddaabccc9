"""fp8 on GPUs that multiply it: e4m3 values with a scale for each row (arXiv:2209.05433).

Activations are turned into fp8 as well, row by row. The scale of a row is that of the whole row,
so a rank that holds some of its columns reads all of them, and then keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.errors import HardwareError, UsageError
from llama.parallel.shard import Piece, Shard
from llama.quant.base import LinearMethod, Memory, StoredWeight
from llama.quant.intake import GroupIntake

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
_LEAST_SCALE = 1e-12
_MIN_CAPABILITY = (8, 9)
_UNIT = 16
"""Both sides of a weight that cuBLAS multiplies are multiples of this."""


def fp8(group_size: int | None) -> LinearMethod:
    if group_size is not None:
        raise UsageError(f"fp8 has a scale for each row and no groups, got group size {group_size}")
    return RowwiseFp8()


@dataclass(frozen=True)
class RowwiseFp8(LinearMethod):
    """Rows of e4m3, rounded up to multiples of 16 with zeros, each with an fp32 scale."""

    def check(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise HardwareError(f"fp8 needs a CUDA device, not {device.type}; use int8")
        capability = torch.cuda.get_device_capability(device)
        if capability < _MIN_CAPABILITY:
            found = ".".join(map(str, capability))
            raise HardwareError(f"fp8 needs compute capability 8.9, not {found}; use int8")

    def store(self, weight: Shard, *, dtype: torch.dtype) -> StoredWeight:
        n_rows, n_columns = weight.shape
        piece = weight.pieces[0] if weight.pieces else None
        first = piece.start if piece is not None and piece.dim == 1 else 0
        pieces = tuple(
            replace(p, start=0, stop=p.full_shape[1]) if p.dim == 1 else p for p in weight.pieces
        )
        shape = (_rounded_up(n_rows), _rounded_up(n_columns))
        return StoredWeight(
            Shard(shape, pieces),
            values=Memory(shape, E4M3),
            scales=Memory((n_rows, 1), torch.float32),
            margins=(0, shape[1] - n_columns),
            intake=partial(self.intake, columns=range(first, first + n_columns)),
        )

    def apply(
        self, x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        assert scales is not None
        n_rows = len(scales)
        values, x_scales = quantize_rows(x.float())
        padded = F.pad(scales, (0, 0, 0, len(weight) - n_rows), value=1.0)
        out = torch._scaled_mm(
            values, weight.t(), scale_a=x_scales, scale_b=padded.t(), out_dtype=torch.bfloat16
        )
        out = out[:, :n_rows].to(x.dtype)
        return out if bias is None else out + bias

    def workspace_bytes(self, *, n_rows: int, n_inputs: int, n_outputs: int, itemsize: int) -> int:
        """x in fp32, as it is and scaled, and in fp8; the result in bfloat16."""
        return n_rows * (9 * n_inputs + 2 * n_outputs)

    def intake(self, piece: Piece, held: Mapping[str, Tensor], *, columns: range) -> GroupIntake:
        """What fills the rows of `held` that `piece` is with its `columns`."""
        values, scales = held["weight"].detach(), held["scales"].detach()
        values.zero_()  # nothing has come yet; rounding up leaves rows and columns that stay so
        n_rows, width = piece.shape
        offset = piece.offset if piece.dim == 0 else 0

        def store(rows: slice, groups: range, block: Tensor) -> None:
            here = slice(offset + rows.start, offset + rows.stop)
            own, scales[here] = quantize_rows(block)
            values[here, : len(columns)] = own[:, columns.start : columns.stop]

        return GroupIntake((n_rows, width), group_size=width, device=values.device, store=store)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, K) fp32 -> e4m3 (N, K), and scales (N, 1) fp32 by which it is to be multiplied."""
    scales = (x.abs().amax(1, keepdim=True) / LARGEST).clamp_min_(_LEAST_SCALE)
    return (x / scales).clamp_(-LARGEST, LARGEST).to(E4M3), scales


def _rounded_up(size: int) -> int:
    return -(-size // _UNIT) * _UNIT
