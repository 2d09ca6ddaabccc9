"""Decoding over the paged cache without gathering it, and without asking the host for a length.

Where Triton and a GPU are there its kernel reads the blocks in place. Elsewhere the same is done by
torch over every slot that a sequence may have: slow, and the same answer. Steps with prompts in
them are another backend's.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

from llama.ops.attention import Attention, write_kv
from llama.ops.attention.sdpa import SdpaAttention
from llama.ops.batch import Batch, DeviceTables

_MOST_SPLITS = 64
_PROGRAMS_PER_PROCESSOR = 2


def paged_attention(batch: Batch, *, dtype: torch.dtype, window: int | None) -> Attention:
    """See `llama.ops.attention.AttentionBackend`."""
    if batch.is_decode:
        return PagedDecode(batch, window=window)
    return SdpaAttention(batch, dtype=dtype, window=window)


class PagedDecode:
    """One step in which every sequence brings one token."""

    def __init__(self, batch: Batch, *, window: int | None) -> None:
        self._batch = batch
        self._tables = batch.tables or device_tables(batch)
        self._window = window
        self._has_kernel = has_kernel(batch.positions.device)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        write_kv(self._batch, k, v, k_cache, v_cache)
        if not self._has_kernel:
            return self._without_kernel(q, k_cache, v_cache, scale=scale)
        from llama.ops.attention.paged_kernel import paged_decode

        return paged_decode(
            q,
            k_cache,
            v_cache,
            block_tables=self._tables.block_tables,
            context_lens=self._tables.context_lens,
            block_size=self._batch.block_size,
            window=self._window,
            scale=scale,
            n_splits=_n_splits(len(q) * k_cache.shape[1], q.device),
        )

    def _without_kernel(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        tables, lengths = self._tables.block_tables, self._tables.context_lens[:, None]
        size, n_blocks = self._batch.block_size, tables.shape[1]
        ring = torch.arange(n_blocks * size, device=q.device)
        slots = tables.repeat_interleave(size, dim=1) * size + ring % size  # (S, ring)
        # the newest token that lies, or would lie, in each slot of the ring
        ages = (lengths - 1 - ring) % (n_blocks * size)
        is_seen = ages < lengths if self._window is None else ages < lengths.clamp(max=self._window)
        keys, values = k_cache[slots].float(), v_cache[slots].float()  # (S, ring, KV heads, dim)
        values = values.masked_fill(~is_seen[:, :, None, None], 0)  # may be NaN where not written
        grouped = q.reshape(len(q), k_cache.shape[1], -1, q.shape[-1]).float()
        scores = torch.einsum("sjgd,stjd->sjgt", grouped, keys) * scale
        scores = scores.masked_fill(~is_seen[:, None, None], -torch.inf)
        found = torch.einsum("sjgt,stjd->sjgd", scores.softmax(-1), values)
        return found.flatten(1, 2).to(q.dtype)


def device_tables(batch: Batch) -> DeviceTables:
    """From the host integers of `batch`."""
    device, longest = batch.positions.device, max(len(table) for table in batch.block_tables)
    tables = [table + table[:1] * (longest - len(table)) for table in batch.block_tables]
    return DeviceTables(
        torch.tensor(tables, device=device), torch.tensor(batch.context_lens, device=device)
    )


def has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    """Asked by every step, and a search of the whole path."""
    return find_spec("triton") is not None


def _n_splits(n_rows: int, device: torch.device) -> int:
    """Runs of each context, so that all processors have work: of shapes alone."""
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(_MOST_SPLITS, _PROGRAMS_PER_PROCESSOR * n_processors // n_rows))
