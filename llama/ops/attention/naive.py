"""Attention as the textbook has it, in fp32: what other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from llama.ops.batch import Batch


class NaiveAttention:
    """One sequence after the other, with an explicit mask and KV heads repeated in memory."""

    def __init__(self, batch: Batch, *, dtype: torch.dtype) -> None:
        self._batch = batch
        self._dtype = dtype

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        group = q.shape[1] // k_cache.shape[1]
        outputs = []
        for index in range(self._batch.n_sequences):
            start, stop = self._batch.cu_seqlens[index : index + 2]
            slots = self._context_slots(index)
            keys = k_cache[slots].float().repeat_interleave(group, dim=1)  # (context, heads, dim)
            values = v_cache[slots].float().repeat_interleave(group, dim=1)
            scores = torch.einsum("nhd,chd->hnc", q[start:stop].float(), keys) * scale
            scores.masked_fill_(self._is_future(index), -torch.inf)
            outputs.append(torch.einsum("hnc,chd->nhd", scores.softmax(dim=-1), values))
        return torch.cat(outputs).to(self._dtype)

    def _context_slots(self, index: int) -> Tensor:
        """(context,) cache slots of the sequence's tokens, in order."""
        table, size = self._batch.block_tables[index], self._batch.block_size
        positions = range(self._batch.context_lens[index])
        slots = [table[position // size] * size + position % size for position in positions]
        return torch.tensor(slots, device=self._batch.positions.device)

    def _is_future(self, index: int) -> Tensor:
        """(new, context) whether the key comes after the query."""
        context_len = self._batch.context_lens[index]
        keys = torch.arange(context_len, device=self._batch.positions.device)
        queries = keys[context_len - self._batch.num_new_tokens[index] :]
        return keys > queries.unsqueeze(1)
