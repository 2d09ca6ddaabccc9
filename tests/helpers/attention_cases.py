"""Steps of attention: ragged batches over scattered blocks and full rings, with the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from llama.ops.attention import ATTENTION, Attention
from llama.ops.batch import Batch
from llama.registry import resolve
from tests.helpers.batches import NewTokens, make_batch, shuffled_tables

HEAD_DIM = 8
SCALE = HEAD_DIM**-0.5
NO_RING = 2**24
"""A table so long that it never comes round."""

SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 5, 17])), min_size=1, max_size=7
)
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)])


@dataclass(frozen=True)
class Case:
    """One step: its batch, inputs, cache before it, and what attention must give, in float32."""

    batch: Batch
    window: int | None
    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    expected: Tensor

    def prepare(self, backend: str, *, dtype: torch.dtype = torch.float32) -> Attention:
        make = resolve(ATTENTION, backend, kind="attention backend")
        attend: Attention = make(self.batch, dtype=dtype, window=self.window)
        return attend

    def run(self, backend: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.run_with(self.prepare(backend, dtype=dtype), dtype=dtype)

    def run_with(self, attend: Attention, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """On copies: the cache stays as it is."""
        tensors = (self.q, self.k, self.v, self.k_cache, self.v_cache)
        return attend(*(tensor.to(dtype, copy=True) for tensor in tensors), scale=SCALE)

    def on_gpu(self) -> Case:
        batch = Batch(**{name: _on_gpu(value) for name, value in vars(self.batch).items()})
        inputs = {name: _on_gpu(value) for name, value in vars(self).items() if name != "expected"}
        return Case(**{**inputs, "batch": batch, "expected": self.expected})


def _on_gpu(value: Any) -> Any:
    return value.cuda() if isinstance(value, Tensor) else value


def dense(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> Tensor:
    """Head by head and query by query: q (n, heads, d) are the last n of k, v (c, kv_heads, d)."""
    n_new, n_heads, _ = q.shape
    context_len, n_kv_heads, _ = k.shape
    out = torch.empty_like(q)
    for head in range(n_heads):
        kv_head = head * n_kv_heads // n_heads
        for row in range(n_new):
            stop = context_len - n_new + row + 1
            seen = slice(0 if window is None else max(0, stop - window), stop)
            scores = k[seen, kv_head] @ q[row, head] / math.sqrt(HEAD_DIM)
            out[row, head] = scores.softmax(0) @ v[seen, kv_head]
    return out


def make_case(
    spans: list[tuple[int, int]],
    *,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    block_size: int = 4,
    window: int | None = None,
    ring_blocks: int = NO_RING,
    seed: int = 0,
    in_order: bool = False,
) -> Case:
    """Sequences of (tokens in the cache, new tokens). What was never written is NaN; what no new
    token may see is large enough to show.
    """
    torch.manual_seed(seed)
    ring_size = ring_blocks * block_size
    held = [min(start + n_new, ring_size) for start, n_new in spans]
    num_blocks = sum(-(-length // block_size) for length in held) + 3
    tables = shuffled_tables(held, num_blocks=num_blocks, block_size=block_size, seed=seed)
    if in_order:
        blocks = iter(range(1, num_blocks))
        tables = [tuple(next(blocks) for _ in table) for table in tables]
    sequences = [
        NewTokens([0] * n_new, start, table)
        for (start, n_new), table in zip(spans, tables, strict=True)
    ]
    batch = make_batch(sequences, block_size=block_size, ring_blocks=ring_blocks)
    q = torch.randn(batch.n_tokens, n_heads, HEAD_DIM)
    k, v = torch.randn(2, batch.n_tokens, n_kv_heads, HEAD_DIM)
    k_cache = torch.full((num_blocks * block_size, n_kv_heads, HEAD_DIM), torch.nan)
    v_cache = k_cache.clone()
    expected = []
    for index, ((start, _), table) in enumerate(zip(spans, tables, strict=True)):
        rows = slice(*batch.cu_seqlens[index : index + 2])
        past_k, past_v = torch.randn(2, start, n_kv_heads, HEAD_DIM)
        if window is not None:
            past_k[: max(0, start - window + 1)] = 100
            past_v[: max(0, start - window + 1)] = 100
        kept = range(max(0, start - ring_size), start)
        slots = [table[p // block_size % ring_blocks] * block_size + p % block_size for p in kept]
        k_cache[slots], v_cache[slots] = past_k[kept.start :], past_v[kept.start :]
        whole = (torch.cat([past_k, k[rows]]), torch.cat([past_v, v[rows]]))
        expected.append(dense(q[rows], *whole, window=window))
    return Case(batch, window, q, k, v, k_cache, v_cache, torch.cat(expected))
