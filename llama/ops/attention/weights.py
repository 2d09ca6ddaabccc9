"""Attention that shows its weights: for looking inside, not for speed.

Not in ATTENTION, since it must be told who wants them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.ops.attention.naive import NaiveAttention
from llama.ops.batch import Batch


class AttentionWithWeights(NaiveAttention):
    """After every layer `keep` gets its weights: one fp32 tensor (n_heads, new tokens, context) a
    sequence, over all positions from 0, where rows sum to 1 and what is not seen has 0.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        dtype: torch.dtype,
        window: int | None,
        keep: Callable[[list[Tensor]], None],
    ) -> None:
        super().__init__(batch, dtype=dtype, window=window)
        self._keep = keep
        self._found: list[Tensor] = []

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        self._found = []
        out = super().__call__(q, k, v, k_cache, v_cache, scale=scale)
        self._keep(self._found)
        return out

    def _weights(self, index: int, q: Tensor, keys: Tensor, *, scale: float) -> Tensor:
        weights = super()._weights(index, q, keys, scale=scale)
        self._found.append(F.pad(weights, (self._past(index).start, 0)))
        return weights
