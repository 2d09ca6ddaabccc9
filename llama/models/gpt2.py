"""GPT-2, as OpenAI and Megatron-LM train it: learned positions, then LayerNorm, attention and a
GELU layer with biases everywhere.

Megatron's query-key layer scaling keeps fp16 scores in range and cancels out: it is not needed
where the softmax is in fp32.
"""

from __future__ import annotations

import torch

from llama.config import ModelConfig
from llama.errors import UsageError
from llama.layers.mlp import GeluMLP
from llama.layers.norm import LayerNorm
from llama.models.architecture import Architecture
from llama.models.block import PreNormBlock
from llama.parallel.comm import Communicator
from llama.quant.base import DENSE, LinearMethod


def make_norm(config: ModelConfig, *, name: str, dtype: torch.dtype) -> LayerNorm:
    return LayerNorm(config.dim, eps=config.norm_eps, name=name, dtype=dtype)


class Gpt2Block(PreNormBlock):
    """Raises UsageError for an activation that is no GELU."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        if config.activation == "silu":
            raise UsageError("architecture gpt2 needs activation gelu or gelu_tanh, got silu")
        mlp = GeluMLP(
            config.dim,
            config.ffn_dim,
            approximate="tanh" if config.activation == "gelu_tanh" else "none",
            bias=config.mlp_bias,
            tp=tp,
            dtype=dtype,
            method=method,
        )
        super().__init__(
            config, make_norm=make_norm, feed_forward=mlp, tp=tp, dtype=dtype, method=method
        )


GPT2 = Architecture(make_block=Gpt2Block, make_norm=make_norm, learned_positions=True)
