"""Normalisation layers; every rank holds them whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama.layers.parameter import sharded_parameter
from llama.ops.norm import layer_norm, rms_norm
from llama.parallel.shard import replicated


class RMSNorm(nn.Module):
    def __init__(self, dim: int, *, eps: float, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = sharded_parameter(replicated(f"{name}.weight", (dim,)), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim), same shape and dtype out."""
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"dim={self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    def __init__(self, dim: int, *, eps: float, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = sharded_parameter(replicated(f"{name}.weight", (dim,)), dtype=dtype)
        self.bias = sharded_parameter(replicated(f"{name}.bias", (dim,)), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim), same shape and dtype out."""
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"dim={self.weight.shape[0]}, eps={self.eps}"
