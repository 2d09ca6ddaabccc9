"""Decoding on a CPU by a kernel of our own that reads the paged cache where it lies.

What brings one token is one call for all such sequences, which also keeps their K and V; prompts
stay with SDPA.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from llama.ops.attention import Attention
from llama.ops.attention.parts import PartedAttention
from llama.ops.attention.sdpa import prompt_parts
from llama.ops.attention.slots import rows_of, visible
from llama.ops.batch import Batch
from llama.ops.kernels import DTYPES, kernels


def native_attention(batch: Batch, *, dtype: torch.dtype, window: int | None) -> Attention:
    """See `llama.ops.attention.AttentionBackend`."""
    decodes = [index for index, num_new in enumerate(batch.num_new_tokens) if num_new == 1]
    own = _Decodes(batch, decodes, window=window, keeps=batch.is_decode)
    if batch.is_decode:
        return own.attend
    before, after = prompt_parts(batch, dtype=dtype, window=window)
    return PartedAttention(
        batch, before_write=before, after_write=[*after, own] if decodes else after
    )


class _Decodes:
    """The sequences of `group`, one new token each; with `keeps` the kernel writes K and V."""

    def __init__(
        self, batch: Batch, group: Sequence[int], *, window: int | None, keeps: bool
    ) -> None:
        library = kernels()
        assert library is not None  # choose_attention has looked
        self._kernel = library.llama_attend_decode
        self.rows = rows_of(batch, group) if group else slice(0, 0)
        self._n_sequences = len(group)
        self._shape = (batch.block_size, batch.ring_blocks)
        self._sequences = array("q")  # see `struct Sequence` of attention.cpp
        self._blocks = array("q")
        for index in group:
            seen = visible(batch, index, window)
            slot = _last_slot(batch, index) if keeps else -1
            self._sequences.extend(
                (batch.cu_seqlens[index], slot, seen.start, seen.stop, len(self._blocks))
            )
            self._blocks.extend(batch.block_tables[index])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.Attention` and `llama.ops.attention.parts.Part`."""
        n_heads, head_dim = q.shape[1:]
        q, k, v = _with_dense_rows(q), _with_dense_rows(k), _with_dense_rows(v)
        assert k_cache.is_contiguous() and v_cache.is_contiguous()
        out = q.new_empty(self._n_sequences, n_heads, head_dim)
        self._kernel(
            DTYPES[q.dtype],
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            out.data_ptr(),
            self._sequences.buffer_info()[0],
            self._n_sequences,
            self._blocks.buffer_info()[0],
            *self._shape,
            n_heads,
            k_cache.shape[1],
            head_dim,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            scale,
        )
        return out


def _last_slot(batch: Batch, index: int) -> int:
    """Where the K and V of the sequence's last token go."""
    number, offset = divmod(batch.context_lens[index] - 1, batch.block_size)
    return batch.block_tables[index][number % batch.ring_blocks] * batch.block_size + offset


def _with_dense_rows(x: Tensor) -> Tensor:
    """x (N, heads, head_dim), copied unless each token's heads lie one after the other."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
