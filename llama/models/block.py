"""The block that every family here is built of; what fills its places differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.layers.attention import ParallelAttention, Step
from llama.models.architecture import MakeNorm
from llama.parallel.comm import Communicator
from llama.quant.base import DENSE, LinearMethod


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        make_norm: MakeNorm,
        feed_forward: nn.Module,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, name="attention_norm", dtype=dtype)
        self.attention = ParallelAttention(
            config.dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            tp=tp,
            dtype=dtype,
            method=method,
        )
        self.ffn_norm = make_norm(config, name="ffn_norm", dtype=dtype)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, step: Step, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        x = x + self.attention(self.attention_norm(x), step, k_cache, v_cache)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out
