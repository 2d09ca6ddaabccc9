"""Attention as the textbook has it, in fp32: what other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from llama.ops.attention import write_kv
from llama.ops.batch import Batch


class NaiveAttention:
    """One sequence after the other, with an explicit mask and KV heads repeated in memory.

    Past tokens are read before new ones are kept, so it matters not whom these write over.
    """

    def __init__(self, batch: Batch, *, dtype: torch.dtype, window: int | None) -> None:
        self._batch = batch
        self._dtype = dtype
        self._window = window

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        group = q.shape[1] // k_cache.shape[1]
        outputs = []
        for index in range(self._batch.n_sequences):
            keys, values = (
                self._seen(index, *side).repeat_interleave(group, dim=1)
                for side in ((k, k_cache), (v, v_cache))
            )
            weights = self._weights(index, q, keys, scale=scale)
            outputs.append(torch.einsum("hnc,chd->nhd", weights, values))
        write_kv(self._batch, k, v, k_cache, v_cache)
        return torch.cat(outputs).to(self._dtype)

    def _weights(self, index: int, q: Tensor, keys: Tensor, *, scale: float) -> Tensor:
        """(n_heads, new, past + new) of one sequence; rows sum to 1."""
        scores = torch.einsum("nhd,chd->hnc", q[self._rows(index)].float(), keys) * scale
        scores.masked_fill_(self._is_hidden(index), -torch.inf)
        return scores.softmax(dim=-1)

    def _seen(self, index: int, fresh: Tensor, cache: Tensor) -> Tensor:
        """(past + new, n_kv_heads, head_dim) fp32, of one sequence."""
        return torch.cat([cache[self._slots(index)], fresh[self._rows(index)]]).float()

    def _rows(self, index: int) -> slice:
        return slice(*self._batch.cu_seqlens[index : index + 2])

    def _past(self, index: int) -> range:
        """Positions before the new tokens that the first of them sees."""
        start = self._batch.context_lens[index] - self._batch.num_new_tokens[index]
        return range(0 if self._window is None else max(0, start - self._window + 1), start)

    def _slots(self, index: int) -> Tensor:
        """(past,) where those positions lie in the cache."""
        batch, size = self._batch, self._batch.block_size
        table = batch.block_tables[index]
        slots = [table[p // size % batch.ring_blocks] * size + p % size for p in self._past(index)]
        return torch.tensor(slots, dtype=torch.int64, device=batch.positions.device)

    def _is_hidden(self, index: int) -> Tensor:
        """(new, past + new) whether the query does not see the key."""
        past = self._past(index)
        stop = self._batch.context_lens[index]
        keys = torch.arange(past.start, stop, device=self._batch.positions.device)
        queries = keys[len(past) :].unsqueeze(1)
        hidden = keys > queries
        return hidden if self._window is None else hidden | (keys <= queries - self._window)
