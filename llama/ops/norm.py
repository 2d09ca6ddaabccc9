"""Normalisation of hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.ops.kernels import DTYPES, kernels_for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., dim) over its root mean square, times weight (dim,), in x's dtype.

    The mean is taken in fp32 and rounded to x's dtype before the weight, as Meta's models do.
    """
    native = kernels_for(x)
    if native is None or not _is_plain(x, weight):
        return F.rms_norm(x.float(), weight.shape, None, eps).type_as(x) * weight
    out = torch.empty_like(x)
    dim = x.shape[-1]
    native.llama_rms_norm(
        DTYPES[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        x.numel() // dim,
        dim,
        eps,
    )
    return out


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel of one dtype can go through both from front to back."""
    return (
        x.is_contiguous()
        and weight.is_contiguous()
        and weight.dtype == x.dtype
        and weight.shape == x.shape[-1:]
        and weight.is_cpu
        and not weight.requires_grad
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., dim) with mean 0 and variance 1, times weight (dim,) plus bias (dim,), in x's dtype.

    Statistics are taken in fp32 and only the result is rounded, as transformers' GPT-2 does.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)
