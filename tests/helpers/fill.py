"""Weights for a module without a checkpoint: full tensors by name, cut as its parameters say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llama.layers.parameter import pieces


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy into every parameter of a materialised `module` its slices of `tensors`.

    Padding is left alone.
    """
    with torch.no_grad():
        for parameter, piece, name in pieces(module):
            assert tensors[name].shape == piece.full_shape, name
            if piece.dim is None:
                parameter.copy_(tensors[name])
                continue
            size = piece.stop - piece.start
            source = tensors[name].narrow(piece.dim, piece.start, size)
            parameter.narrow(piece.dim, piece.offset, size).copy_(source)
