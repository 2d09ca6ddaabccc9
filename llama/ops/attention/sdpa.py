"""Attention through torch's scaled_dot_product_attention: the default on every device.

A step is cut into parts with one kernel call each: every prompt (or chunk of one) alone, and
decoding sequences in groups of similar length. Blocks that lie in ascending order are read in
place, others are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.ops.batch import Batch

_CHEAP_TOKENS = 512
"""A gather of so many tokens costs less than another kernel call. On a CPU larger ones leave its
caches: 8 sequences of 2048 tokens took 72 ms in one gather and 10 ms as eight views."""
_MAX_TOKENS = 65536
"""Bounds the memory of one gather on an accelerator, where calls are dear and copies cheap."""


@dataclass(frozen=True)
class _Part:
    """One kernel call: query rows of `n_sequences` sequences and the slots of their contexts.

    `rows` (sequences · new tokens each). `slots` (sequences · longest context). `mask` is additive
    and broadcasts to (sequences, heads, queries, context); None where nothing is hidden or
    `is_causal`.
    """

    rows: slice | Tensor
    slots: slice | Tensor
    n_sequences: int
    mask: Tensor | None = None
    is_causal: bool = False

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float) -> Tensor:
        """(rows, heads, head_dim) of q (rows, heads, head_dim)."""
        n_rows, n_heads, head_dim = q.shape
        n_kv_heads = k_cache.shape[1]
        if n_rows == self.n_sequences:
            # heads of one group become query rows of their KV head, which is then read once
            q = q.view(n_rows, n_kv_heads, n_heads // n_kv_heads, head_dim)
        else:
            q = q.transpose(0, 1).unsqueeze(0)  # (1, heads, rows, head_dim)
        out = F.scaled_dot_product_attention(
            q,
            self._context(k_cache),
            self._context(v_cache),
            attn_mask=self.mask,
            is_causal=self.is_causal,
            scale=scale,
            enable_gqa=q.shape[1] != n_kv_heads,
        )
        if n_rows == self.n_sequences:
            return out.reshape(n_rows, n_heads, head_dim)
        return out.squeeze(0).transpose(0, 1)

    def _context(self, cache: Tensor) -> Tensor:
        """(sequences, n_kv_heads, context, head_dim), a view where the slots are a slice."""
        if isinstance(self.slots, slice):
            context = cache[self.slots]
        else:
            context = cache.index_select(0, self.slots)
        return context.view(self.n_sequences, -1, *cache.shape[1:]).transpose(1, 2)


class SdpaAttention:
    """One step's parts, made once and called by every layer."""

    def __init__(self, batch: Batch, *, dtype: torch.dtype) -> None:
        prompts = [index for index, num_new in enumerate(batch.num_new_tokens) if num_new > 1]
        decodes = [index for index, num_new in enumerate(batch.num_new_tokens) if num_new == 1]
        max_tokens = most_gathered_tokens(batch.positions.device.type)
        self._parts = [_prompt_part(batch, index, dtype=dtype) for index in prompts]
        self._parts += [
            _decode_part(batch, group, dtype=dtype)
            for group in group_by_length(decodes, batch.context_lens, max_tokens=max_tokens)
        ]

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, *, scale: float) -> Tensor:
        """See `llama.ops.attention.Attention`."""
        if len(self._parts) == 1:
            return self._parts[0].attend(q, k_cache, v_cache, scale=scale)
        out = q.new_empty(q.shape)
        for part in self._parts:
            out[part.rows] = part.attend(q[part.rows], k_cache, v_cache, scale=scale)
        return out


def most_gathered_tokens(device_type: str) -> int:
    """Context tokens of several sequences that one kernel call may copy together."""
    return _CHEAP_TOKENS if device_type == "cpu" else _MAX_TOKENS


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


def _prompt_part(batch: Batch, index: int, *, dtype: torch.dtype) -> _Part:
    rows = slice(*batch.cu_seqlens[index : index + 2])
    slots = _slots(batch, [index])
    num_new, context_len = batch.num_new_tokens[index], batch.context_lens[index]
    if num_new == context_len:
        return _Part(rows, slots, 1, is_causal=True)
    # is_causal would align the first query with the first key
    mask = torch.full(
        (num_new, context_len), -torch.inf, dtype=dtype, device=batch.positions.device
    )
    return _Part(rows, slots, 1, mask=mask.triu_(context_len - num_new + 1))


def _decode_part(batch: Batch, group: Sequence[int], *, dtype: torch.dtype) -> _Part:
    device = batch.positions.device
    first, last = batch.cu_seqlens[group[0]], batch.cu_seqlens[group[-1]]
    rows: slice | Tensor = slice(first, last + 1)
    if last + 1 - first != len(group):
        rows = torch.tensor([batch.cu_seqlens[index] for index in group], device=device)
    context_lens = [batch.context_lens[index] for index in group]
    longest = max(context_lens)
    mask = None
    if min(context_lens) < longest:
        is_padding = _is_padding(context_lens, longest, device=device)
        mask = torch.zeros(is_padding.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(is_padding, -torch.inf)[:, None, None]
    return _Part(rows, _slots(batch, group), len(group), mask=mask)


def _is_padding(context_lens: Sequence[int], longest: int, *, device: torch.device) -> Tensor:
    """(sequences, longest) whether the position lies behind the sequence's end."""
    ends = torch.tensor(context_lens, device=device).unsqueeze(1)
    return torch.arange(longest, device=device) >= ends


def _slots(batch: Batch, group: Sequence[int]) -> slice | Tensor:
    """Cache slots (sequences · longest,) of the group's contexts; a slice where they are a run."""
    size = batch.block_size
    context_lens = [batch.context_lens[index] for index in group]
    longest = max(context_lens)
    n_blocks = -(-longest // size)
    if len(group) == 1:
        table = batch.block_tables[group[0]]
        if table[:n_blocks] == tuple(range(table[0], table[0] + n_blocks)):
            return slice(table[0] * size, table[0] * size + longest)
    tables = [batch.block_tables[index][:n_blocks] for index in group]
    padded = [[*table, *[0] * (n_blocks - len(table))] for table in tables]
    device = batch.positions.device
    blocks = torch.tensor(padded, device=device)
    offsets = torch.arange(size, device=device)
    slots = (blocks.unsqueeze(-1) * size + offsets).flatten(1)[:, :longest]
    # a masked slot is still multiplied by zero: it must hold a finite number, so one of its own
    own = slots[:, :1]
    return torch.where(_is_padding(context_lens, longest, device=device), own, slots).flatten()
