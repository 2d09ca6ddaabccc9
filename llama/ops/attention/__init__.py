"""Attention of new tokens over the paged cache. One file per backend; ATTENTION finds it.

A backend is called once per step and sliding window with the Batch and returns what every layer of
that step and window calls, so that masks and slot indices are made once. It knows no layer and
keeps nothing between steps.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from llama.ops.batch import Batch

ATTENTION = {
    "flash": "llama.ops.attention.flash:FlashAttention",
    "naive": "llama.ops.attention.naive:NaiveAttention",
    "paged": "llama.ops.attention.paged:paged_attention",
    "native": "llama.ops.attention.native:native_attention",
    "sdpa": "llama.ops.attention.sdpa:SdpaAttention",
}


class Attention(Protocol):
    """Causal attention of one step, for any layer."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        scale: float,
    ) -> Tensor:
        """(N, n_heads, head_dim), each new token over what it sees of its sequence, itself too.

        q (N, n_heads, head_dim) and the new tokens' k and v (N, n_kv_heads, head_dim), which are
        kept in k_cache and v_cache (slots, n_kv_heads, head_dim). Query heads j·g .. (j + 1)·g - 1
        read KV head j, with g = n_heads / n_kv_heads.
        """
        ...


class AttentionBackend(Protocol):
    """Prepares one step; `dtype` is that of q and of the cache.

    The token at position q sees positions k with q - window < k <= q, or all k <= q without one.
    """

    def __call__(self, batch: Batch, *, dtype: torch.dtype, window: int | None) -> Attention: ...


def write_kv(batch: Batch, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Keep the new tokens' K and V (N, n_kv_heads, head_dim), as far as the batch says."""
    for fresh, cache in ((k, k_cache), (v, v_cache)):
        kept = fresh if batch.write_rows is None else fresh.index_select(0, batch.write_rows)
        cache.index_copy_(0, batch.slot_mapping, kept)
