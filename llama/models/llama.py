"""Llama and what shares its block: pre-norm GQA attention with RoPE, then SwiGLU.

Meta's tensor names are the canonical ones, so module names here are the names in a checkpoint.
"""

from __future__ import annotations

import torch

from llama.config import ModelConfig
from llama.layers.mlp import SwiGLU
from llama.layers.norm import RMSNorm
from llama.models.architecture import Architecture
from llama.models.block import PreNormBlock
from llama.parallel.comm import Communicator
from llama.quant.base import DENSE, LinearMethod


def make_norm(config: ModelConfig, *, name: str, dtype: torch.dtype) -> RMSNorm:
    return RMSNorm(config.dim, eps=config.norm_eps, name=name, dtype=dtype)


class LlamaBlock(PreNormBlock):
    def __init__(
        self,
        config: ModelConfig,
        *,
        tp: Communicator,
        dtype: torch.dtype,
        method: LinearMethod = DENSE,
    ) -> None:
        mlp = SwiGLU(
            config.dim, config.ffn_dim, bias=config.mlp_bias, tp=tp, dtype=dtype, method=method
        )
        super().__init__(
            config, make_norm=make_norm, feed_forward=mlp, tp=tp, dtype=dtype, method=method
        )


LLAMA = Architecture(make_block=LlamaBlock, make_norm=make_norm)
