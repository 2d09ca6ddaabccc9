"""Attention through the flash_attn package, for NVIDIA GPUs that it has kernels for.

All sequences of a step share one call, whatever they bring, and no masks are made: the kernel knows
windows. It takes blocks of 256 tokens, or a multiple, as they lie; smaller ones are gathered. See
the docstring of flash_attn_varlen_func in the package, https://github.com/Dao-AILab/flash-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from llama.errors import HardwareError
from llama.ops.attention.context import MAX_GATHERED_TOKENS, Context, fresh_context
from llama.ops.attention.parts import PartedAttention
from llama.ops.attention.slots import overwrites, packed_slots, padded_tables, rows_of, visible
from llama.ops.batch import Batch

PAGE_SIZE = 256
"""Tokens of which a block must hold a multiple for the kernel to read it in place."""


class Kernel(Protocol):
    """flash_attn.flash_attn_varlen_func, as far as it is used here.

    q (total_q, n_heads, head_dim). k and v (total_k, n_kv_heads, head_dim), or with a `block_table`
    (sequences, most pages) int32 (pages, page size, n_kv_heads, head_dim). The cumulative lengths
    (sequences + 1,) are int32. `causal` lets the last query see the last key. `window_size` is how
    many keys before and after its own a query sees, -1 for all.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        *,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
        block_table: Tensor | None,
    ) -> Tensor: ...


def load_kernel() -> Kernel:
    """The package's. Raises HardwareError with the reason when it cannot be imported, or is one
    that has no such function.
    """
    try:
        package = import_module("flash_attn")
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        if isinstance(error, ModuleNotFoundError) and error.name == "flash_attn":
            raise HardwareError("flash_attn is not installed") from error
        raise HardwareError(f"flash_attn cannot be imported: {error}") from error
    kernel: Kernel | None = getattr(package, "flash_attn_varlen_func", None)
    # flash-attn 4 has the package's name without this function; early versions know no pages
    if kernel is None or "block_table" not in signature(kernel).parameters:
        raise HardwareError(
            "flash_attn has no flash_attn_varlen_func with a block_table; install the latest 2.x"
        )
    return kernel


@dataclass(frozen=True)
class _Lengths:
    """Queries, or keys, of each sequence of one call: running sums from 0, and the most."""

    sums: Tensor
    longest: int

    @classmethod
    def of(cls, counts: Sequence[int], *, device: torch.device) -> _Lengths:
        sums = list(accumulate(counts, initial=0))
        return cls(torch.tensor(sums, dtype=torch.int32, device=device), max(counts))


@dataclass(frozen=True)
class _Part:
    """One call of the kernel. K and V are `context`, or the pages of the cache in `block_table`."""

    kernel: Kernel
    rows: slice | Tensor
    queries: _Lengths
    keys: _Lengths
    window_size: tuple[int, int]
    page_size: int
    context: Context | None = None
    block_table: Tensor | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.parts.Part`."""
        return self.kernel(
            q[self.rows],
            self._read(k, k_cache),
            self._read(v, v_cache),
            self.queries.sums,
            self.keys.sums,
            self.queries.longest,
            self.keys.longest,
            softmax_scale=scale,
            causal=True,
            window_size=self.window_size,
            block_table=self.block_table,
        )

    def _read(self, fresh: Tensor, cache: Tensor) -> Tensor:
        if self.context is None:
            return cache.view(-1, self.page_size, *cache.shape[1:])
        return self.context.read(fresh, cache)


class FlashAttention(PartedAttention):
    """One step's calls: one for everything, and one for each chunk that writes over its past.

    Raises HardwareError when there is no `kernel`, which by default is the package's.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        dtype: torch.dtype,
        window: int | None,
        kernel: Kernel | None = None,
    ) -> None:
        self._batch = batch
        self._window = window
        self._kernel = kernel or load_kernel()
        indices = range(batch.n_sequences)
        alone = [index for index in indices if overwrites(batch, index)]
        others = [index for index in indices if not overwrites(batch, index)]
        if batch.block_size % PAGE_SIZE == 0:
            after_write = [self._paged(others)] if others else []
        else:
            counts = [len(visible(batch, index, window)) for index in indices]
            groups = group_in_order(others, counts, max_tokens=MAX_GATHERED_TOKENS)
            after_write = [self._gathered(group) for group in groups]
        before_write = [self._fresh(index) for index in alone]
        super().__init__(batch, before_write=before_write, after_write=after_write)

    def _paged(self, group: Sequence[int]) -> _Part:
        """Pages from that of the first visible token on; what precedes it there lies outside of
        every window.
        """
        size, device = self._batch.block_size, self._batch.positions.device
        spans = [visible(self._batch, index, self._window) for index in group]
        table = padded_tables(self._batch, group, spans)
        return self._part(
            group,
            [span.start % size + len(span) for span in spans],
            block_table=torch.tensor(table, dtype=torch.int32, device=device),
        )

    def _gathered(self, group: Sequence[int]) -> _Part:
        spans = [visible(self._batch, index, self._window) for index in group]
        context = Context(packed_slots(self._batch, group, spans))
        return self._part(group, [len(span) for span in spans], context=context)

    def _fresh(self, index: int) -> _Part:
        context = fresh_context(self._batch, index, self._window)
        return self._part(
            [index], [len(visible(self._batch, index, self._window))], context=context
        )

    def _part(
        self,
        group: Sequence[int],
        n_keys: Sequence[int],
        *,
        context: Context | None = None,
        block_table: Tensor | None = None,
    ) -> _Part:
        device = self._batch.positions.device
        n_queries = [self._batch.num_new_tokens[index] for index in group]
        return _Part(
            self._kernel,
            rows_of(self._batch, group),
            queries=_Lengths.of(n_queries, device=device),
            keys=_Lengths.of(n_keys, device=device),
            window_size=(-1, -1) if self._window is None else (self._window - 1, 0),
            page_size=self._batch.block_size,
            context=context,
            block_table=block_table,
        )


def group_in_order(
    indices: Sequence[int], lengths: Sequence[int], *, max_tokens: int
) -> list[list[int]]:
    """Split `indices` into runs; one of several holds at most `max_tokens`."""
    groups: list[list[int]] = []
    room = 0
    for index in indices:
        if not groups or lengths[index] > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= lengths[index]
    return groups
