"""The GPU kernel behind `paged`: one decoding token per sequence over the paged cache, in place.

Flash decoding (Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html): each
context is cut into `n_splits` runs, so that a batch of one keeps a whole GPU busy, and a second
kernel joins what the runs found. Launches depend on shapes alone, never on lengths, so both can be
captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS_AT_ONCE = 64
_LEAST_ROWS = 16
"""Rows of the smallest matrix that tensor cores multiply; heads of a group are padded to it."""


@triton.jit
def _attend_run(
    q_ptr,
    k_ptr,
    v_ptr,
    tables_ptr,
    lengths_ptr,
    found_ptr,
    scores_ptr,
    scale,
    window,
    q_stride,
    slot_stride,
    table_stride,
    ring_blocks,
    n_splits,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One run of one sequence's context, for the query heads of one KV head.

    Leaves in `found` (S, KV heads, splits, GROUP, HEAD_DIM) fp32 the run's own softmax average of
    V, and in `scores` (S, KV heads, splits, GROUP) the log of its sum of exponentials.
    """
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n_kv_heads = tl.num_programs(1)
    length = tl.load(lengths_ptr + sequence)
    begin = tl.maximum(length - window, 0)
    run = tl.cdiv(tl.cdiv(length - begin, n_splits), TOKENS) * TOKENS
    start = begin + split * run
    stop = tl.minimum(start + run, length)

    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    is_head, is_column = rows < GROUP, columns < HEAD_DIM
    heads = (kv_head * GROUP + rows) * HEAD_DIM
    q_places = sequence * q_stride + heads[:, None] + columns[None, :]
    inside = is_head[:, None] & is_column[None, :]
    q = tl.load(q_ptr + q_places, mask=inside, other=0.0)  # (ROWS, COLUMNS)

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    average = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start, stop, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        is_token = tokens < stop
        numbers = (tokens // BLOCK_SIZE) % ring_blocks
        blocks = tl.load(tables_ptr + sequence * table_stride + numbers, mask=is_token, other=0)
        slots = blocks.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
        places = slots[:, None] * slot_stride + kv_head * HEAD_DIM + columns[None, :]
        readable = is_token[:, None] & is_column[None, :]
        k = tl.load(k_ptr + places, mask=readable, other=0.0)  # (TOKENS, COLUMNS)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (ROWS, TOKENS)
        logits = tl.where(is_token[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp(logits - higher[:, None])
        shrink = tl.exp(highest - higher)
        v = tl.load(v_ptr + places, mask=readable, other=0.0)
        seen = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        average = average * shrink[:, None] + seen
        total = total * shrink + tl.sum(weights, 1)
        highest = higher

    # a run without tokens has the score -inf, and so no weight in the end
    is_empty = total == 0
    average = average / tl.where(is_empty, 1.0, total)[:, None]
    score = tl.where(is_empty, float("-inf"), highest + tl.log(tl.where(is_empty, 1.0, total)))
    own = ((sequence * n_kv_heads + kv_head) * n_splits + split) * GROUP + rows
    tl.store(scores_ptr + own, score, mask=is_head)
    tl.store(found_ptr + own[:, None] * HEAD_DIM + columns[None, :], average, mask=inside)


@triton.jit
def _join_runs(
    found_ptr,
    scores_ptr,
    out_ptr,
    n_splits,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One head of one sequence: the runs' averages, weighted by their sums of exponentials."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    n_heads = tl.num_programs(1)
    kv_heads = sequence * (n_heads // GROUP) + head // GROUP
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    is_split, is_column = splits < n_splits, columns < HEAD_DIM
    own = (kv_heads * n_splits + splits) * GROUP + head % GROUP
    scores = tl.load(scores_ptr + own, mask=is_split, other=float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 0))
    weights = weights / tl.sum(weights, 0)
    readable = is_split[:, None] & is_column[None, :]
    places = own[:, None] * HEAD_DIM + columns[None, :]
    averages = tl.load(found_ptr + places, mask=readable, other=0.0)  # (SPLITS, COLUMNS)
    joined = tl.sum(averages * weights[:, None], 0)
    place = (sequence * n_heads + head) * HEAD_DIM + columns
    tl.store(out_ptr + place, joined.to(out_ptr.dtype.element_ty), mask=is_column)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_tables: Tensor,
    context_lens: Tensor,
    block_size: int,
    window: int | None,
    scale: float,
    n_splits: int,
) -> Tensor:
    """(S, n_heads, head_dim) in q's dtype: the newest token of each sequence over its context.

    q (S, n_heads, head_dim), its heads side by side; caches (slots, n_kv_heads, head_dim)
    contiguous; block_tables (S, ring blocks) and context_lens (S,) int64, the new token counted.
    Scores and sums are fp32.
    """
    n_sequences, n_heads, head_dim = q.shape
    n_kv_heads = k_cache.shape[1]
    group = n_heads // n_kv_heads
    columns = max(16, triton.next_power_of_2(head_dim))
    found = q.new_empty((n_sequences, n_kv_heads, n_splits, group, head_dim), dtype=torch.float32)
    scores = found.new_empty(found.shape[:-1])
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend_run[(n_sequences, n_kv_heads, n_splits)](
        q,
        k_cache,
        v_cache,
        block_tables,
        context_lens,
        found,
        scores,
        scale,
        window or 2**31 - 1,
        q.stride(0),
        k_cache.stride(0),
        block_tables.stride(0),
        block_tables.shape[1],
        n_splits,
        BLOCK_SIZE=block_size,
        GROUP=group,
        ROWS=max(_LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        COLUMNS=columns,
        TOKENS=_TOKENS_AT_ONCE,
    )
    _join_runs[(n_sequences, n_heads)](
        found,
        scores,
        out,
        n_splits,
        GROUP=group,
        HEAD_DIM=head_dim,
        COLUMNS=columns,
        SPLITS=triton.next_power_of_2(n_splits),
    )
    return out
