"""Where K and V of one kernel call come from: the cache, the step's own, or one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.ops.attention.slots import rows_of, slots_of, visible
from llama.ops.batch import Batch

MAX_GATHERED_TOKENS = 65536
"""Bounds the memory of one gather on an accelerator, where calls are dear and copies cheap."""


@dataclass(frozen=True)
class Context:
    """`slots` of the cache, then `fresh` rows of the step."""

    slots: slice | Tensor | None
    fresh: slice | Tensor | None = None

    def read(self, fresh: Tensor, cache: Tensor) -> Tensor:
        """(tokens, n_kv_heads, head_dim), a view where nothing need be gathered."""
        pieces = []
        if isinstance(self.slots, slice):
            pieces.append(cache[self.slots])
        elif self.slots is not None:
            pieces.append(cache.index_select(0, self.slots))
        if self.fresh is not None:
            pieces.append(fresh[self.fresh])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def fresh_context(batch: Batch, index: int, window: int | None) -> Context:
    """What new tokens of a sequence see, read before they are written: they come from the step."""
    seen = visible(batch, index, window)
    past = range(seen.start, seen.stop - batch.num_new_tokens[index])
    return Context(slots_of(batch, index, past) if past else None, fresh=rows_of(batch, [index]))
