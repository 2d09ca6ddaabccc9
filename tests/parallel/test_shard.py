"""Slices of parameters: the ranks hold every item, and what belongs together stays together."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama.errors import UsageError
from llama.parallel.shard import (
    FFN_UNIT,
    Piece,
    ffn_shard,
    head_shard,
    replicated,
    sliced,
    stacked,
    vocab_shard,
)

SIZES = range(1, 17)
HEADS = [(kv * group, kv) for kv, group in product((1, 2, 3, 4, 8), (1, 2, 3, 4, 8))]
heads = st.sampled_from(HEADS)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_query_heads_tile_exactly(n_heads: int, n_kv_heads: int) -> None:
    for tp in range(1, min(16, n_heads) + 1):
        parts = [head_shard(n_heads, n_kv_heads, tp_size=tp, tp_rank=r) for r in range(tp)]
        assert [head for part in parts for head in part.heads] == [*range(n_heads)]
        assert all(part.heads for part in parts)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_local_kv_heads_serve_exactly_the_local_query_heads(n_heads: int, n_kv_heads: int) -> None:
    group = n_heads // n_kv_heads
    for tp in range(1, min(16, n_heads) + 1):
        for rank in range(tp):
            part = head_shard(n_heads, n_kv_heads, tp_size=tp, tp_rank=rank)
            assert [*part.kv_heads] == sorted({head // group for head in part.heads})
            # attention repeats each local KV head equally often, in order
            ratio, rest = divmod(len(part.heads), len(part.kv_heads))
            assert rest == 0
            for i, head in enumerate(part.heads):
                assert head // group == part.kv_heads[i // ratio]


@given(heads, st.data())
def test_heads_are_balanced_over_ranks(sizes: tuple[int, int], data: st.DataObject) -> None:
    n_heads, n_kv_heads = sizes
    tp = data.draw(st.integers(1, min(16, n_heads)))
    parts = [head_shard(n_heads, n_kv_heads, tp_size=tp, tp_rank=r) for r in range(tp)]
    kv_counts = [len(part.kv_heads) for part in parts]
    assert max(kv_counts) - min(kv_counts) <= 1
    if tp >= n_kv_heads:
        assert set(kv_counts) == {1}
    if tp <= n_kv_heads:
        assert sum(kv_counts) == n_kv_heads  # no KV head is kept twice without need


def test_rows_follow_the_heads() -> None:
    part = head_shard(8, 2, tp_size=2, tp_rank=1)
    assert (part.rows(16), part.kv_rows(16)) == (range(64, 128), range(16, 32))


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "tp", "message"),
    [
        (8, 3, 1, "n_kv_heads 3 does not divide n_heads 8"),
        (8, 0, 1, "n_kv_heads 0"),
        (4, 2, 5, "tp_size 5 exceeds n_heads 4; use at most 4"),
    ],
)
def test_impossible_heads_are_refused(n_heads: int, n_kv_heads: int, tp: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        head_shard(n_heads, n_kv_heads, tp_size=tp, tp_rank=0)


@given(st.integers(1, 300), st.sampled_from(SIZES))
def test_vocab_shards_tile_and_have_equal_shapes(vocab_size: int, tp: int) -> None:
    shards = [vocab_shard("w", (vocab_size, 4), tp_size=tp, tp_rank=r) for r in range(tp)]
    held = [row for s in shards for p in s.pieces for row in range(p.start, p.stop)]
    assert held == [*range(vocab_size)]
    assert len({shard.shape for shard in shards}) == 1
    for rank, shard in enumerate(shards):
        rows = shard.shape[0]
        n_held = sum(piece.shape[0] for piece in shard.pieces)
        assert shard.is_padded == (n_held < rows)
        # id -> rank is a division, so that embedding and head can mask without a table
        assert all(piece.start == rank * rows and piece.offset == 0 for piece in shard.pieces)
    assert shards[0].shape[0] * tp - vocab_size < tp


@given(st.integers(1, 4000), st.sampled_from(SIZES))
def test_ffn_columns_tile_and_nobody_is_empty(ffn_dim: int, tp: int) -> None:
    if tp > ffn_dim:
        with pytest.raises(UsageError, match=f"use at most {ffn_dim}"):
            ffn_shard(ffn_dim, tp_size=tp, tp_rank=0)
        return
    parts = [ffn_shard(ffn_dim, tp_size=tp, tp_rank=r) for r in range(tp)]
    assert [column for part in parts for column in part] == [*range(ffn_dim)]
    assert all(parts)


@pytest.mark.parametrize("tp", SIZES)
def test_ffn_units_stay_whole_for_real_sizes(tp: int) -> None:
    for ffn_dim in (11008, 14336, 28672):
        for rank in range(tp):
            part = ffn_shard(ffn_dim, tp_size=tp, tp_rank=rank)
            assert part.start % FFN_UNIT == 0 == part.stop % FFN_UNIT


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_stacked_pieces_lie_one_after_the_other(sizes: list[tuple[int, int]], dim: int) -> None:
    shape = [5, 6, 7]
    parts = []
    for i, (length, start) in enumerate(sizes):
        full = (*shape[:dim], start + length, *shape[dim + 1 :])
        parts.append((f"w{i}", full, range(start, start + length)))
    shard = stacked(parts, dim=dim)
    covered = []
    for piece, (source, full, part) in zip(shard.pieces, parts, strict=True):
        assert (piece.source, piece.full_shape, piece.dim) == (source, full, dim)
        assert piece.shape[dim] == len(part)
        covered += range(piece.offset, piece.offset + piece.shape[dim])
    assert covered == [*range(shard.shape[dim])]
    assert not shard.is_padded


def test_a_slice_and_a_replica() -> None:
    assert sliced("w", (4, 6), 1, range(2, 5)).pieces == (Piece("w", (4, 6), 1, 2, 5, 0),)
    assert sliced("w", (4, 6), 1, range(2, 5)).shape == (4, 3)
    whole = replicated("b", (4, 6))
    assert whole.shape == whole.pieces[0].shape == (4, 6)
    assert not whole.is_padded
