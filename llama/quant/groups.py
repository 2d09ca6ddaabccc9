"""Weights in 8 or 4 bits, one scale for every group of columns of a row.

A weight is `value * scale`. Values are symmetric about zero: -127 to 127 in int8; in 4 bits -8 to
7, where the weight of greatest magnitude becomes -8 and so gives the scale its sign, as in GGML's
Q4_0. Scales are bfloat16: the range of float32, so no weight is too small or too large, and a step
that is at most 0.2 % wider than the best one. Two 4-bit values share a byte, each plus 8: within 32
columns byte `i` has column `i` below and column `i + 16` above.

A group's values depend on its own weights alone. NaN or infinity makes the whole group NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama.errors import UsageError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.bfloat16
_BLOCK_WEIGHTS = 1 << 20  # temporaries stay within a few MB, and in the cache


def check_format(*, in_features: int, bits: int, group_size: int) -> None:
    """Raise UsageError where rows of `in_features` weights cannot be stored so."""
    if bits not in BITS:
        raise UsageError(f"{bits} bits a weight are not known; use 4 or 8")
    if group_size not in GROUP_SIZES:
        raise UsageError(f"a group of {group_size} columns is not known; use 32, 64 or 128")
    if in_features % group_size:
        raise UsageError(
            f"{in_features} columns are not a multiple of the group size {group_size}; "
            "use a group size that divides them"
        )


def quantize(weight: Tensor, *, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """weight (M, K) of any float dtype -> values, scales (M, K / group_size) bfloat16.

    Values are int8 (M, K), or uint8 (M, K / 2) for 4 bits. Raises UsageError for a format that K
    does not allow.
    """
    rows, columns = weight.shape
    check_format(in_features=columns, bits=bits, group_size=group_size)
    values = weight.new_empty(
        (rows, columns * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8
    )
    scales = weight.new_empty((rows, columns // group_size), dtype=SCALE_DTYPE)
    block_rows = rows_of_a_block(columns)
    for start in range(0, rows, block_rows):
        some = slice(start, start + block_rows)
        grouped = (
            weight[some].float().reshape(-1, columns // group_size, group_size)
        )  # (m, G, group)
        block_scales = _scales(grouped, bits=bits)
        scales[some] = block_scales
        integers = _integers(grouped, block_scales, bits=bits).flatten(1)  # (m, K)
        values[some] = integers if bits == 8 else _pack(integers)
    return values, scales


def dequantize(
    values: Tensor, scales: Tensor, *, bits: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    """The weight (M, K) that values and scales stand for, each product rounded once to dtype."""
    integers = values if bits == 8 else _unpack(values)
    grouped = integers.float().reshape(*scales.shape, group_size)  # (M, G, group)
    return grouped.mul_(scales.float().unsqueeze(-1)).flatten(1).to(dtype)


def rows_of_a_block(columns: int) -> int:
    """How many rows of so many columns to convert at a time."""
    return max(1, _BLOCK_WEIGHTS // max(1, columns))


def _scales(grouped: Tensor, *, bits: int) -> Tensor:
    """grouped (m, G, group) -> (m, G) bfloat16. Rounding it moves no value past the range's end."""
    least, greatest = grouped.aminmax(dim=-1)
    if bits == 8:
        return (torch.maximum(-least, greatest) / 127).to(SCALE_DTYPE)
    extreme = torch.where(-least >= greatest, least, greatest)
    return (extreme / -8).to(SCALE_DTYPE)


def _integers(grouped: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """Nearest integers, ties to even, of weights over scales; 0 where that is no number."""
    ratios = (grouped / scales.float().unsqueeze(-1)).nan_to_num_(nan=0.0)
    bottom, top = (-127, 127) if bits == 8 else (-8, 7)
    return ratios.round_().clamp_(bottom, top).to(torch.int8)


def _pack(integers: Tensor) -> Tensor:
    """int8 (m, K) of -8 to 7 -> uint8 (m, K / 2)."""
    halves = (integers + 8).to(torch.uint8).reshape(len(integers), integers.shape[1] // 32, 2, 16)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)


def _unpack(values: Tensor) -> Tensor:
    """uint8 (M, K / 2) -> int8 (M, K) of -8 to 7."""
    pairs = values.reshape(len(values), values.shape[1] // 16, 16)  # (M, K / 32, 16)
    halves = torch.stack([pairs & 15, pairs >> 4], dim=2)  # (M, K / 32, 2, 16)
    return halves.flatten(1).to(torch.int8) - 8
