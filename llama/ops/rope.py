"""Rotary position embedding: the angles of positions, and turning heads by them.

Which positions a step has, and which convention the weights were trained or stored with, is said by
the caller.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from llama.config import RopeScaling
from llama.ops.kernels import DTYPES, kernels_for

RopeStyle = Literal["interleaved", "half"]


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """(head_dim / 2,) fp32: theta^(-2i / head_dim), slowed as `scaling` says.

    "linear" is position interpolation (arXiv:2306.15595): turning `factor` times slower is the same
    as dividing positions by it. "llama3" is Llama 3.1's own. "dynamic" has these as long as the
    original context lasts; see `dynamic_frequencies`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _by_band(frequencies, scaling)


def _by_band(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: keep short wavelengths, divide the frequency of long ones, blend in between."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / band).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def dynamic_frequencies(
    lengths: Tensor, head_dim: int, theta: float, scaling: RopeScaling
) -> Tensor:
    """(N, head_dim / 2) fp32: the frequencies in sequences of `lengths` (N,) tokens.

    Dynamic NTK scaling, as Hugging Face has it: beyond the original context the base grows with
    the length, so that short waves stay and the longest is stretched by `factor` · length /
    original context - (factor - 1). Powers are taken in fp64, then rounded.
    """
    relative = lengths.double().clamp(min=scaling.original_context) / scaling.original_context
    stretch = scaling.factor * relative - (scaling.factor - 1)  # (N,), 1 in the original context
    bases = theta * stretch ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=lengths.device) / head_dim
    return (1.0 / bases.unsqueeze(1) ** exponents).float()


def rope_table(frequencies: Tensor, n_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (n_positions, head_dim / 2) fp32, of position · frequency."""
    positions = torch.arange(n_positions, dtype=torch.float32, device=frequencies.device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, style: RopeStyle) -> Tensor:
    """Turn the pairs of every head of x (N, heads, head_dim) by cos, sin (N, head_dim / 2).

    Pairs are neighbours (2i, 2i + 1) in style "interleaved" and (i, i + head_dim / 2) in style
    "half". Computed in fp32, returned in x's dtype.
    """
    if style == "interleaved":
        neighbours = x.float().view(*x.shape[:-1], -1, 2)
        pairs = torch.view_as_complex(neighbours)  # (N, heads, head_dim / 2)
        turned = pairs * torch.complex(cos, sin).unsqueeze(1)
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, style: RopeStyle) -> Tensor:
    """`apply_rope`, in place where there is a kernel: x belongs to the result."""
    n_rows, n_heads, head_dim = x.shape
    native = kernels_for(x)
    if native is None or x.stride()[1:] != (head_dim, 1):
        return apply_rope(x, cos, sin, style=style)
    assert cos.is_contiguous() and sin.is_contiguous()
    native.llama_rope(
        DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        n_rows,
        n_heads,
        head_dim,
        cos.data_ptr(),
        sin.data_ptr(),
        style == "interleaved",
    )
    return x
