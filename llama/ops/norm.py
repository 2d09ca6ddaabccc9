"""Normalisation of hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., dim) over its root mean square, times weight (dim,), in x's dtype.

    The mean is taken in fp32 and rounded to x's dtype before the weight, as Meta's models do.
    """
    return F.rms_norm(x.float(), weight.shape, None, eps).type_as(x) * weight
