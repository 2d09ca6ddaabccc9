"""GPT-2, as OpenAI and Megatron-LM train it: learned positions, then LayerNorm, attention and a
GELU layer with biases everywhere.

Megatron's query-key layer scaling keeps fp16 scores in range and cancels out: it is not needed
where the softmax is in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.errors import UsageError
from llama.layers.attention import ParallelAttention, Step
from llama.layers.mlp import GeluMLP
from llama.layers.norm import LayerNorm
from llama.models.architecture import Architecture
from llama.parallel.comm import Communicator


def make_norm(config: ModelConfig, *, name: str, dtype: torch.dtype) -> LayerNorm:
    return LayerNorm(config.dim, eps=config.norm_eps, name=name, dtype=dtype)


class Gpt2Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward layer.

    Raises UsageError for an activation that is no GELU.
    """

    def __init__(self, config: ModelConfig, *, tp: Communicator, dtype: torch.dtype) -> None:
        super().__init__()
        if config.activation == "silu":
            raise UsageError("architecture gpt2 needs activation gelu or gelu_tanh, got silu")
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
        self.feed_forward = GeluMLP(
            config.dim,
            config.ffn_dim,
            approximate="tanh" if config.activation == "gelu_tanh" else "none",
            bias=config.mlp_bias,
            tp=tp,
            dtype=dtype,
        )

    def forward(self, x: Tensor, step: Step, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        x = x + self.attention(self.attention_norm(x), step, k_cache, v_cache)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


GPT2 = Architecture(make_block=Gpt2Block, make_norm=make_norm, learned_positions=True)
