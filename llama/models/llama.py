"""Llama and what shares its block: pre-norm GQA attention with RoPE, then SwiGLU.

Meta's tensor names are the canonical ones, so module names here are the names in a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.layers.attention import ParallelAttention, Step
from llama.layers.mlp import SwiGLU
from llama.layers.norm import RMSNorm
from llama.models.architecture import Architecture
from llama.parallel.comm import Communicator


def make_norm(config: ModelConfig, *, name: str, dtype: torch.dtype) -> RMSNorm:
    return RMSNorm(config.dim, eps=config.norm_eps, name=name, dtype=dtype)


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward layer."""

    def __init__(self, config: ModelConfig, *, tp: Communicator, dtype: torch.dtype) -> None:
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
        )
        self.ffn_norm = make_norm(config, name="ffn_norm", dtype=dtype)
        self.feed_forward = SwiGLU(
            config.dim, config.ffn_dim, bias=config.mlp_bias, tp=tp, dtype=dtype
        )

    def forward(self, x: Tensor, step: Step, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        x = x + self.attention(self.attention_norm(x), step, k_cache, v_cache)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


LLAMA = Architecture(make_block=LlamaBlock, make_norm=make_norm)
