"""The product of activations and a quantised weight: kernels where they fit, torch otherwise.

It knows no layer and no rank. The format is that of llama.quant.groups.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.quant.groups import check_format, dequantize, rows_of_a_block
from llama.quant.kernels import kernels_for

_KERNEL_ROWS = 32
"""Of x. For more, a product in float32 is faster, and widening the weight costs little."""


def quantized_linear(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    bits: int,
    group_size: int,
    dynamic: bool,
) -> Tensor:
    """x (..., K) times the weight (M, K) that values and scales stand for -> (..., M) in x's dtype.

    Sums are float32. With `dynamic`, x is rounded to int8 first, group by group, and the products
    are integers. A NaN in a row of x makes that row NaN; an infinity makes it infinite or NaN.
    """
    check_format(in_features=x.shape[-1], bits=bits, group_size=group_size)
    activations = x.reshape(-1, x.shape[-1]).float().contiguous()  # (N, K)
    wide_bias = None if bias is None else bias.float().contiguous()
    fits = x.is_cpu and values.shape[1] * 8 == x.shape[-1] * bits
    fits = fits and (bias is None or bias.shape == values.shape[:1])
    native = kernels_for(values, scales, group_size=group_size) if fits else None
    out = activations.new_empty((activations.shape[0], values.shape[0]))
    if native is not None and activations.shape[0] <= _KERNEL_ROWS:
        native.llama_quantized_linear(
            activations.data_ptr(),
            values.data_ptr(),
            scales.data_ptr(),
            None if wide_bias is None else wide_bias.data_ptr(),
            out.data_ptr(),
            *(*out.shape, activations.shape[1], bits, group_size, int(dynamic)),
        )
    else:
        if dynamic:
            activations = _rounded(activations, group_size=group_size)
        widen = _widener(native, bits=bits, group_size=group_size)
        _multiply_blocks(activations, values, scales, out, widen=widen)
        if wide_bias is not None:
            out += wide_bias
    return out.to(x.dtype).view(*x.shape[:-1], values.shape[0])


def _multiply_blocks(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    out: Tensor,
    *,
    widen: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Into `out` (N, M), some rows of the weight at a time."""
    block_rows = rows_of_a_block(x.shape[1])
    for start in range(0, values.shape[0], block_rows):
        some = slice(start, start + block_rows)
        out[:, some] = F.linear(x, widen(values[some], scales[some]))


def _widener(
    native: ctypes.CDLL | None, *, bits: int, group_size: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes values and scales the float32 weight (m, K) that they stand for."""

    def widen(values: Tensor, scales: Tensor) -> Tensor:
        if native is None:
            return dequantize(values, scales, bits=bits, group_size=group_size, dtype=torch.float32)
        rows, columns = values.shape[0], scales.shape[1] * group_size
        weight = torch.empty(rows, columns)
        native.llama_dequantize(
            *(values.data_ptr(), scales.data_ptr(), weight.data_ptr()),
            *(rows, columns, bits, group_size),
        )
        return weight

    return widen


def _rounded(x: Tensor, *, group_size: int) -> Tensor:
    """x (N, K) float32 with every group rounded to 255 steps; NaN where a group is not finite."""
    grouped = x.reshape(len(x), x.shape[1] // group_size, group_size)  # (N, G, group)
    greatest = grouped.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(greatest < 1e-30, 0.0, 127 / greatest)
    rounded: Tensor = (grouped * inverse).round() * (greatest / 127)
    return rounded.flatten(1)
