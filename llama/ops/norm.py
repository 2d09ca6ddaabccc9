"""Normalisation of hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., dim) over its root mean square, times weight (dim,), in x's dtype.

    The mean is taken in fp32 and rounded to x's dtype before the weight, as Meta's models do.
    """
    return F.rms_norm(x.float(), weight.shape, None, eps).type_as(x) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., dim) with mean 0 and variance 1, times weight (dim,) plus bias (dim,), in x's dtype.

    Statistics are taken in fp32 and only the result is rounded, as transformers' GPT-2 does.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)
