"""Activations of feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llama.ops.kernels import DTYPES, kernels_for


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(gate) · up of x (N, 2 · width), gate and up side by side: (N, width), in x's dtype.

    silu is rounded to that dtype before the product.
    """
    n_rows, width = x.shape[0], x.shape[1] // 2
    native = kernels_for(x)
    if native is None or not x.is_contiguous():
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
    out = x.new_empty(n_rows, width)
    native.llama_swiglu(DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), n_rows, width)
    return out
