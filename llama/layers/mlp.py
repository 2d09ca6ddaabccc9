"""Feed-forward layers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from llama.ops.activation import silu_and_mul
from llama.parallel.comm import Communicator
from llama.parallel.shard import ffn_shard
from llama.quant.base import DENSE, LinearMethod


class SwiGLU(nn.Module):
    """w2(silu(w1 x) · w3 x), with w1 and w3 as one product; each rank holds part of the columns.

    Raises UsageError when there are more ranks than columns.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        *,
        bias: bool,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        parts = [ffn_shard(ffn_dim, tp_size=tp.size, tp_rank=rank) for rank in range(tp.size)]
        part = parts[tp.rank]
        self.w13 = MergedColumnParallelLinear(
            dim,
            [("w1", ffn_dim, part), ("w3", ffn_dim, part)],
            bias=bias,
            tp=tp,
            dtype=dtype,
            method=method,
        )
        self.w2 = RowParallelLinear(
            ffn_dim, dim, bias=bias, tp=tp, name="w2", dtype=dtype, method=method, parts=parts
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        out: Tensor = self.w2(silu_and_mul(self.w13(x)))
        return out


class GeluMLP(nn.Module):
    """w2(gelu(w1 x)); each rank holds part of the columns.

    `approximate` says which GELU (Hendrycks and Gimpel 2016): "none" is exact, by erf; "tanh" is
    what GPT-2 was trained with, and Megatron-LM unless told otherwise. They differ by up to 5e-4.
    Raises UsageError when there are more ranks than columns.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        *,
        approximate: Literal["none", "tanh"],
        bias: bool,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        self.approximate = approximate
        parts = [ffn_shard(ffn_dim, tp_size=tp.size, tp_rank=rank) for rank in range(tp.size)]
        self.w1 = ColumnParallelLinear(
            dim, ffn_dim, bias=bias, tp=tp, name="w1", dtype=dtype, method=method, parts=parts
        )
        self.w2 = RowParallelLinear(
            ffn_dim, dim, bias=bias, tp=tp, name="w2", dtype=dtype, method=method, parts=parts
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        out: Tensor = self.w2(F.gelu(self.w1(x), approximate=self.approximate))
        return out

    def extra_repr(self) -> str:
        return f"approximate={self.approximate}"
