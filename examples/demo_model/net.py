"""Llama in plain PyTorch: one process, no cache, the modules named as in Meta's checkpoints.

It knows nothing of text, files or training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetConfig:
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    multiple_of: int
    norm_eps: float
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Two thirds of 4 * dim, rounded up: SwiGLU has three matrices where an MLP has two."""
        units = -(-int(2 * 4 * self.dim / 3) // self.multiple_of)
        return units * self.multiple_of


def rope_freqs(config: NetConfig) -> Tensor:
    """Angle per position of every pair of head dims; shape (head_dim / 2,), fp32."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    return 1.0 / config.rope_theta**exponents


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """RoPE on adjacent pairs. x (batch, seqlen, heads, head_dim), turns (seqlen, head_dim / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        heads = (-1, self.head_dim)
        q = rotate(self.wq(x).unflatten(-1, heads), turns).transpose(1, 2)
        k = rotate(self.wk(x).unflatten(-1, heads), turns).transpose(1, 2)
        v = self.wv(x).unflatten(-1, heads).transpose(1, 2)  # (batch, kv_heads, seqlen, head_dim)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed_forward(self.ffn_norm(x))


class Net(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, seqlen) -> logits (batch, seqlen, vocab_size), fp32."""
        positions = torch.arange(ids.shape[1], dtype=torch.float32)
        angles = torch.outer(positions, rope_freqs(self.config))
        turns = torch.polar(torch.ones_like(angles), angles)  # (seqlen, head_dim / 2), complex
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, turns)
        logits: Tensor = self.output(self.norm(x))
        return logits.float()


@torch.inference_mode()
def greedy(net: Net, prompt: list[int], *, eos: int, max_new_tokens: int) -> list[int]:
    """The most likely continuation of `prompt`, without the eos that ends it."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        best = int(net(torch.tensor([ids]))[0, -1].argmax())
        if best == eos:
            break
        ids.append(best)
    return ids[len(prompt) :]
