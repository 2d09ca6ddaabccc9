"""Attention of new tokens over the paged cache. One file per backend; ATTENTION finds it.

A backend is called once per step with the Batch and returns what every layer of that step calls, so
that masks and slot indices are made once. It knows no layer and keeps nothing between steps.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from llama.ops.batch import Batch

ATTENTION = {
    "naive": "llama.ops.attention.naive:NaiveAttention",
    "sdpa": "llama.ops.attention.sdpa:SdpaAttention",
}


class Attention(Protocol):
    """Causal attention of one step, for any layer."""

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float) -> Tensor:
        """(N, n_heads, head_dim), each new token over its sequence up to and including itself.

        q (N, n_heads, head_dim); k_cache, v_cache (slots, n_kv_heads, head_dim) already hold the
        new tokens. Query heads j·g .. (j + 1)·g - 1 read KV head j, with g = n_heads / n_kv_heads.
        """
        ...


class AttentionBackend(Protocol):
    """Prepares one step; `dtype` is that of q and of the cache."""

    def __call__(self, batch: Batch, *, dtype: torch.dtype) -> Attention: ...
