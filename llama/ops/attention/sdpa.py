"""Attention through torch's scaled_dot_product_attention: it runs on every device.

A step is cut into parts with one kernel call each: every prompt (or chunk of one) alone, and
decoding sequences in groups of similar length. A prompt that begins here is attended as it comes,
and so is a chunk that writes over its past, after that past. What the cache holds is read in place
where it is one run of memory, and gathered elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.ops.attention.context import MAX_GATHERED_TOKENS, Context, fresh_context
from llama.ops.attention.parts import Part, PartedAttention
from llama.ops.attention.slots import (
    is_padding,
    overwrites,
    padded_slots,
    rows_of,
    run_of,
    slots_of,
    visible,
)
from llama.ops.batch import Batch

_CHEAP_TOKENS = 512
"""A gather of so many tokens costs less than another kernel call. On a CPU larger ones leave its
caches: 8 sequences of 2048 tokens took 72 ms in one gather and 10 ms as eight views."""


@dataclass(frozen=True)
class _Part:
    """One kernel call: query rows of `n_sequences` sequences over their contexts.

    `rows` (sequences · new tokens each), `context` (sequences · longest context). `mask` is
    additive and broadcasts to (sequences, heads, queries, context); None where nothing is hidden or
    `is_causal`.
    """

    rows: slice | Tensor
    context: Context
    n_sequences: int
    mask: Tensor | None = None
    is_causal: bool = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float
    ) -> Tensor:
        """See `llama.ops.attention.parts.Part`."""
        q = q[self.rows]
        n_rows, n_heads, head_dim = q.shape
        n_kv_heads = k_cache.shape[1]
        if n_rows == self.n_sequences:
            # heads of one group become query rows of their KV head, which is then read once
            q = q.view(n_rows, n_kv_heads, n_heads // n_kv_heads, head_dim)
        else:
            q = q.transpose(0, 1).unsqueeze(0)  # (1, heads, rows, head_dim)
        keys, values = (
            self._by_sequence(self.context.read(*side)) for side in ((k, k_cache), (v, v_cache))
        )
        group = q.shape[1] // n_kv_heads
        if group > 1 and self.mask is not None and repeats_kv(q.device.type):
            keys, values = (side.repeat_interleave(group, dim=1) for side in (keys, values))
        out = F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=self.mask,
            is_causal=self.is_causal,
            scale=scale,
            enable_gqa=q.shape[1] != keys.shape[1],
        )
        if n_rows == self.n_sequences:
            return out.reshape(n_rows, n_heads, head_dim)
        return out.squeeze(0).transpose(0, 1)

    def _by_sequence(self, context: Tensor) -> Tensor:
        """(sequences, n_kv_heads, context, head_dim), a view."""
        return context.view(self.n_sequences, -1, *context.shape[1:]).transpose(1, 2)


class SdpaAttention(PartedAttention):
    """One step's parts: prompts, then groups of decodes."""

    def __init__(self, batch: Batch, *, dtype: torch.dtype, window: int | None) -> None:
        decodes = [index for index, num_new in enumerate(batch.num_new_tokens) if num_new == 1]
        groups = group_by_length(
            decodes,
            [len(visible(batch, index, window)) for index in range(batch.n_sequences)],
            max_tokens=most_gathered_tokens(batch.positions.device.type),
        )
        before, after = prompt_parts(batch, dtype=dtype, window=window)
        after += [_decode_part(batch, group, dtype=dtype, window=window) for group in groups]
        super().__init__(batch, before_write=before, after_write=after)


def prompt_parts(
    batch: Batch, *, dtype: torch.dtype, window: int | None
) -> tuple[list[Part], list[Part]]:
    """What brings several tokens: the parts before new K and V are written, and those after."""
    before: list[Part] = []
    after: list[Part] = []
    for index, num_new in enumerate(batch.num_new_tokens):
        if num_new > 1:
            part = _prompt_part(batch, index, dtype=dtype, window=window)
            (after if part.context.fresh is None else before).append(part)
    return before, after


def most_gathered_tokens(device_type: str) -> int:
    """Context tokens of several sequences that one kernel call may copy together."""
    return _CHEAP_TOKENS if device_type == "cpu" else MAX_GATHERED_TOKENS


def repeats_kv(device_type: str) -> bool:
    """Whether a prompt's K and V are repeated for all heads of a group where it needs a mask.

    Of torch 2.13's fused CUDA kernels only cuDNN's takes groups and a mask together. Without one
    the scores of all heads are held at once: 1.6 GB for a chunk of 2048 tokens of Mistral 7B.
    """
    return device_type == "cuda"


def group_by_length(
    indices: Sequence[int], lengths: Sequence[int], *, max_tokens: int
) -> list[list[int]]:
    """Split `indices` into groups to be padded to their longest; ascending within a group.

    A group of several holds at most `max_tokens` padded tokens, and at most half of a large one is
    padding.
    """
    groups: list[list[int]] = []
    for index in sorted(indices, key=lambda index: lengths[index]):
        if groups and _is_worth_padding(
            len(groups[-1]) + 1,
            shortest=lengths[groups[-1][0]],
            longest=lengths[index],
            max_tokens=max_tokens,
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [sorted(group) for group in groups]


def _is_worth_padding(n_sequences: int, *, shortest: int, longest: int, max_tokens: int) -> bool:
    padded = n_sequences * longest
    return padded <= _CHEAP_TOKENS or (padded <= max_tokens and longest <= 2 * shortest)


def _prompt_part(batch: Batch, index: int, *, dtype: torch.dtype, window: int | None) -> _Part:
    seen = visible(batch, index, window)
    starts_here = batch.num_new_tokens[index] == seen.stop
    if starts_here or overwrites(batch, index):
        context = fresh_context(batch, index, window)
    else:
        context = Context(slots_of(batch, index, seen))
    is_causal = starts_here and (window is None or window >= seen.stop)
    mask = None if is_causal else _band(batch, index, seen, window=window, dtype=dtype)
    return _Part(rows_of(batch, [index]), context, 1, mask=mask, is_causal=is_causal)


def _band(
    batch: Batch, index: int, seen: range, *, window: int | None, dtype: torch.dtype
) -> Tensor:
    """(new tokens, seen) what the new tokens see of `seen`, which ends with them.

    is_causal would align the first query with the first key. One row serves all, shifted by one.
    """
    num_new = batch.num_new_tokens[index]
    ages = torch.arange(len(seen) - 1, -num_new, -1, device=batch.positions.device)
    hidden = ages < 0 if window is None else (ages < 0) | (ages >= window)
    return _additive(hidden, dtype=dtype).unfold(0, len(seen), 1).flip(0)


def _decode_part(
    batch: Batch, group: Sequence[int], *, dtype: torch.dtype, window: int | None
) -> _Part:
    rows, spans = rows_of(batch, group), [visible(batch, index, window) for index in group]
    if len(group) == 1:
        slots, mask = _lone_decode(batch, group[0], spans[0], dtype=dtype)
        return _Part(rows, Context(slots), 1, mask=mask)
    lengths = [len(span) for span in spans]
    mask = None
    if min(lengths) < max(lengths):
        mask = _additive(is_padding(spans, device=batch.positions.device), dtype=dtype)
        mask = mask[:, None, None]
    return _Part(rows, Context(padded_slots(batch, group, spans)), len(group), mask=mask)


def _lone_decode(
    batch: Batch, index: int, seen: range, *, dtype: torch.dtype
) -> tuple[slice | Tensor, Tensor | None]:
    """The slots that one decode reads, and the mask of those that it does not see.

    A full ring that is one run is read as it lies, since keys carry their positions, unless it is
    so much more than what is seen that a copy of that costs less.
    """
    ring_size = batch.ring_blocks * batch.block_size
    ring = None
    if run_of(batch, index, seen) is None and ring_size <= min(seen.stop, 2 * len(seen)):
        ring = run_of(batch, index, range(ring_size))
    if ring is None:
        return slots_of(batch, index, seen), None
    if len(seen) == ring_size:
        return ring, None
    ages = (seen.stop - 1 - torch.arange(ring_size, device=batch.positions.device)) % ring_size
    return ring, _additive(ages >= len(seen), dtype=dtype)[None, None, None]


def _additive(hidden: Tensor, *, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -torch.inf)
