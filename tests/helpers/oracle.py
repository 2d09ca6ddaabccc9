"""The reference that everything is measured against: a plain Llama in one file.

No cache, no batch, no parallelism, nothing of llama.* but the sizes. Every call computes every
position of one sequence from scratch, in float32. Formulas are those of Meta's reference model
(RMSNorm, rotary embedding, grouped-query attention, SwiGLU), of Llama 3.1's frequency scaling, of
linear position interpolation and of Mistral's sliding window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, silu, softmax

from llama.config import ModelConfig


@torch.inference_mode()
def logits(config: ModelConfig, weights: Mapping[str, Tensor], token_ids: list[int]) -> Tensor:
    """Row i holds the logits of what follows token i: (n_tokens, vocab_size), float32."""
    weights = {name: weight.float() for name, weight in weights.items()}
    x = weights["tok_embeddings.weight"][torch.tensor(token_ids)]  # (n, dim)
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        x = x + attention(
            config,
            weights,
            prefix + "attention.",
            norm(config, weights, prefix + "attention_norm", x),
        )
        x = x + feed_forward(
            weights, prefix + "feed_forward.", norm(config, weights, prefix + "ffn_norm", x)
        )
    return project(weights, "output", norm(config, weights, "norm", x))


def greedy(
    config: ModelConfig, weights: Mapping[str, Tensor], prompt: list[int], n_tokens: int
) -> list[int]:
    """The `n_tokens` most likely tokens after `prompt`, each given all before it."""
    token_ids = list(prompt)
    for _ in range(n_tokens):
        token_ids.append(int(logits(config, weights, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


def project(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(config: ModelConfig, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean_square = (x * x).mean(-1, keepdim=True)
    return x / torch.sqrt(mean_square + config.norm_eps) * weights[f"{name}.weight"]


def feed_forward(weights: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    gate = silu(project(weights, prefix + "w1", x))
    return project(weights, prefix + "w2", gate * project(weights, prefix + "w3", x))


def attention(config: ModelConfig, weights: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """`prefix` is "layers.3.attention.": a layer may have a window of its own."""
    n_tokens, window = x.shape[0], config.windows[int(prefix.split(".")[1])]
    q = project(weights, prefix + "wq", x).view(n_tokens, config.n_heads, config.head_dim)
    k = project(weights, prefix + "wk", x).view(n_tokens, config.n_kv_heads, config.head_dim)
    v = project(weights, prefix + "wv", x).view(n_tokens, config.n_kv_heads, config.head_dim)
    q, k = rotate(config, q), rotate(config, k)
    group = config.n_heads // config.n_kv_heads
    outputs = []
    for head in range(config.n_heads):
        kv_head = head // group
        scores = q[:, head] @ k[:, kv_head].T / math.sqrt(config.head_dim)  # (n, n)
        everything = torch.ones(n_tokens, n_tokens, dtype=torch.bool)
        hidden = everything.triu(1)
        if window is not None:
            hidden = hidden | everything.tril(-window)
        scores = scores.masked_fill(hidden, -math.inf)
        outputs.append(softmax(scores, dim=-1) @ v[:, kv_head])
    return project(weights, prefix + "wo", torch.cat(outputs, dim=-1))


def rotate(config: ModelConfig, x: Tensor) -> Tensor:
    """Turn every pair of a head by position times the pair's frequency. x: (n, heads, head_dim)."""
    angles = torch.outer(torch.arange(x.shape[0]).float(), frequencies(config))
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]  # (n, 1, head_dim / 2)
    half = config.head_dim // 2
    result = torch.empty_like(x)
    if config.rope_style == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        result[..., 0::2] = first * cos - second * sin
        result[..., 1::2] = first * sin + second * cos
    else:
        first, second = x[..., :half], x[..., half:]
        result[..., :half] = first * cos - second * sin
        result[..., half:] = first * sin + second * cos
    return result


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair: (head_dim / 2,)."""
    values = [
        config.rope_theta ** (-2 * pair / config.head_dim) for pair in range(config.head_dim // 2)
    ]
    if config.rope_scaling is not None:
        values = [scaled(config, value) for value in values]
    return torch.tensor(values, dtype=torch.float32)


def scaled(config: ModelConfig, frequency: float) -> float:
    """Llama 3.1: slow turns are slowed by `factor`, fast ones stay, those between are mixed.

    Linear: all are slowed.
    """
    scaling = config.rope_scaling
    assert scaling is not None
    if scaling.kind == "linear":
        return frequency / scaling.factor
    wavelength = 2 * math.pi / frequency
    turns = scaling.original_context / wavelength
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - share) * frequency / scaling.factor + share * frequency
