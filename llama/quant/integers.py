"""int8 and int4: groups of columns that share a scale, as in GGUF's Q8_0 and in GPTQ without zeros.

Groups lie on the columns of the whole matrix, whoever holds them. A rank whose slice begins or ends
inside of a group reads and holds the rest of it, too: so all ranks of all layouts have the same
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from llama.errors import UsageError
from llama.parallel.shard import Piece, Shard
from llama.quant.base import LinearMethod, Memory, StoredWeight
from llama.quant.groups import GROUP_SIZES, SCALE_DTYPE, quantize, rows_of_a_block
from llama.quant.intake import GroupIntake
from llama.quant.product import quantized_linear

_FP32_BYTES = 4


def int8(group_size: int | None) -> LinearMethod:
    return GroupedIntegers(bits=8, group_size=_checked(group_size, default=64))


def int8_dynamic(group_size: int | None) -> LinearMethod:
    return GroupedIntegers(bits=8, group_size=_checked(group_size, default=64), dynamic=True)


def int4(group_size: int | None) -> LinearMethod:
    return GroupedIntegers(bits=4, group_size=_checked(group_size, default=32))


@dataclass(frozen=True)
class GroupedIntegers(LinearMethod):
    """Integers of `bits` and a scale for each `group_size` columns of a row.

    With `dynamic` the activations are quantised as well, to int8, for each product anew.
    """

    bits: int
    group_size: int
    dynamic: bool = False

    def store(self, weight: Shard, *, dtype: torch.dtype) -> StoredWeight:
        piece = weight.pieces[0] if weight.pieces else None
        start, stop, width = 0, weight.shape[1], weight.shape[1]
        if piece is not None:
            width = piece.full_shape[1]
            start, stop = (piece.start, piece.stop) if piece.dim == 1 else (0, width)
        self._check_width(width, piece)
        size = self.group_size
        first, end = start // size * size, -(-stop // size) * size
        n_rows, n_columns = weight.shape[0], end - first
        pieces = tuple(
            replace(p, start=first, stop=min(end, width)) if p.dim == 1 else p
            for p in weight.pieces
        )
        packed = torch.int8 if self.bits == 8 else torch.uint8
        return StoredWeight(
            Shard((n_rows, n_columns), pieces),
            values=Memory((n_rows, n_columns * self.bits // 8), packed),
            scales=Memory((n_rows, n_columns // size), SCALE_DTYPE),
            margins=(start - first, end - stop),
            intake=self.intake,
        )

    def apply(
        self, x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        assert scales is not None
        return quantized_linear(
            x,
            weight,
            scales,
            bias,
            bits=self.bits,
            group_size=self.group_size,
            dynamic=self.dynamic,
        )

    def workspace_bytes(self, *, n_rows: int, n_inputs: int, n_outputs: int, itemsize: int) -> int:
        """x and the result in fp32 where they are not, x rounded, and a block of the weight."""
        widened = 0 if itemsize == _FP32_BYTES else n_inputs + n_outputs
        rounded = n_inputs if self.dynamic else 0
        block = min(n_inputs * n_outputs, rows_of_a_block(n_inputs) * n_inputs)
        return (n_rows * (widened + rounded) + block) * _FP32_BYTES

    def intake(self, piece: Piece, held: Mapping[str, Tensor]) -> GroupIntake:
        """What fills the rows of `held` that `piece` is."""
        values, scales = held["weight"].detach(), held["scales"].detach()
        n_rows, n_columns = piece.shape
        if piece.dim == 0:
            values = values.narrow(0, piece.offset, n_rows)
            scales = scales.narrow(0, piece.offset, n_rows)
        return GroupIntake(
            (n_rows, n_columns),
            group_size=self.group_size,
            device=values.device,
            store=partial(self._store, values, scales),
        )

    def _store(
        self, values: Tensor, scales: Tensor, rows: slice, groups: range, block: Tensor
    ) -> None:
        got = quantize(block, bits=self.bits, group_size=self.group_size)
        bytes_a_group = self.group_size * self.bits // 8
        values[rows, groups.start * bytes_a_group : groups.stop * bytes_a_group] = got[0]
        scales[rows, groups.start : groups.stop] = got[1]

    def _check_width(self, width: int, piece: Piece | None) -> None:
        if self.group_size <= width:
            return
        fitting = [size for size in GROUP_SIZES if size <= width]
        way_out = f"use {fitting[-1]}" if fitting else "it is too small to be quantised"
        name = piece.source if piece else "a weight"
        raise UsageError(
            f"group size {self.group_size} exceeds the {width} input features of {name}; {way_out}"
        )


def _checked(group_size: int | None, *, default: int) -> int:
    if group_size is None:
        return default
    if group_size not in GROUP_SIZES:
        known = ", ".join(map(str, GROUP_SIZES))
        raise UsageError(f"group size must be one of {known}, got {group_size}")
    return group_size
