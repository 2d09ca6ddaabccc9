"""Random GPT-2 models under canonical names: [out, in] linears, biases everywhere, a tied head."""

from __future__ import annotations

import math
from typing import Any

import torch

from llama.config import ModelConfig
from tests.helpers.checkpoints import Weights


def tiny_gpt2_config(**changes: Any) -> ModelConfig:
    """A GPT-2 whose sizes 1, 2 or 4 ranks can share."""
    sizes: dict[str, Any] = {
        "architecture": "gpt2",
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 8,
        "ffn_dim": 128,
        "vocab_size": 64,
        "max_positions": 48,
        "activation": "gelu_tanh",
        "attention_bias": True,
        "mlp_bias": True,
        "tied_embeddings": True,
        "rope_style": "half",
    }
    return ModelConfig(**{**sizes, **changes})


def gpt2_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> full shape of every tensor, the tied head included."""
    dim = config.dim
    linears = {
        "attention.wq": (dim, dim),
        "attention.wk": (dim, dim),
        "attention.wv": (dim, dim),
        "attention.wo": (dim, dim),
        "feed_forward.w1": (config.ffn_dim, dim),
        "feed_forward.w2": (dim, config.ffn_dim),
    }
    assert config.max_positions is not None
    found: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab_size, dim),
        "pos_embeddings.weight": (config.max_positions, dim),
    }
    for layer in range(config.n_layers):
        for name, shape in linears.items():
            found[f"layers.{layer}.{name}.weight"] = shape
            found[f"layers.{layer}.{name}.bias"] = shape[:1]
        for norm in ("attention_norm", "ffn_norm"):
            found[f"layers.{layer}.{norm}.weight"] = (dim,)
            found[f"layers.{layer}.{norm}.bias"] = (dim,)
    found |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {**found, "output.weight": (config.vocab_size, dim)}


def random_gpt2(config: ModelConfig, seed: int = 0) -> Weights:
    """fp32 weights whose greedy choices are far apart; output.weight is the embedding itself."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in gpt2_shapes(config).items():
        weight = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.1 * weight
        elif name.endswith("bias"):
            weights[name] = 0.1 * weight
        elif name.endswith("_embeddings.weight"):
            weights[name] = weight
        elif name == "output.weight":
            tied = config.tied_embeddings
            weights[name] = weights["tok_embeddings.weight"] if tied else weight
        else:
            weights[name] = weight * (1.5 / math.sqrt(shape[1]))
    return weights
