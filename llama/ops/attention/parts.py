"""A step cut into parts with one kernel call each, and when each may read the cache.

Which kernel a part calls, and with what, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from llama.ops.attention import write_kv
from llama.ops.batch import Batch


class Part(Protocol):
    """Some sequences of a step."""

    @property
    def rows(self) -> slice | Tensor:
        """Their new tokens."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """(rows, n_heads, head_dim), from the tensors of the whole step."""
        ...


class PartedAttention:
    """One step's parts, made once and called by every layer.

    Parts `before_write` take new K and V as they come: of tokens in the cache that these are
    written over, some may be seen by other new ones.
    """

    def __init__(
        self, batch: Batch, *, before_write: Sequence[Part], after_write: Sequence[Part]
    ) -> None:
        self._batch = batch
        self._before_write = before_write
        self._after_write = after_write

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        tensors = (q, k, v, k_cache, v_cache)
        found = [part.attend(*tensors, scale=scale) for part in self._before_write]
        write_kv(self._batch, k, v, k_cache, v_cache)
        found += [part.attend(*tensors, scale=scale) for part in self._after_write]
        if len(found) == 1:
            return found[0]
        out = q.new_empty(q.shape)
        parts = (*self._before_write, *self._after_write)
        for part, rows in zip(parts, found, strict=True):
            out[part.rows] = rows
        return out
