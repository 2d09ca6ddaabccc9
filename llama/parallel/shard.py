"""Which slices of which checkpoint tensors a local parameter holds. Pure arithmetic: no torch.

A `Shard` is the only thing that layers and checkpoints share. A layer declares one for each of its
parameters; the loader asks a reader for exactly those slices and copies them where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama.errors import UsageError
from llama.parallel.layout import partition, partition_units


@dataclass(frozen=True)
class Piece:
    """Items `start..stop` of dim `dim` of the full tensor `source`, at `offset` of the same dim
    here.

    `source` is relative to the module that owns the layer: "wq.weight" beside a fused
    "wqkv.weight". `dim` None means the whole tensor (replicated); then start, stop and offset are
    unused.
    """

    source: str
    full_shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    stop: int = 0
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the slice."""
        if self.dim is None:
            return self.full_shape
        size = self.stop - self.start
        return (*self.full_shape[: self.dim], size, *self.full_shape[self.dim + 1 :])


@dataclass(frozen=True)
class Shard:
    """What one local parameter of `shape` holds; zero where no piece lands (vocab padding)."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def is_padded(self) -> bool:
        """Whether some of the parameter comes from no checkpoint tensor."""
        return sum(_numel(piece.shape) for piece in self.pieces) < _numel(self.shape)


def replicated(source: str, shape: tuple[int, ...]) -> Shard:
    """The whole of `source` on every rank."""
    return Shard(shape, (Piece(source, shape),))


def sliced(source: str, full_shape: tuple[int, ...], dim: int, part: range) -> Shard:
    """Items `part` of dim `dim` of `source`."""
    return stacked([(source, full_shape, part)], dim=dim)


def stacked(parts: Sequence[tuple[str, tuple[int, ...], range]], *, dim: int) -> Shard:
    """Slices `(source, full_shape, part)` of several tensors, one after the other along `dim`."""
    pieces: list[Piece] = []
    offset = 0
    for source, full_shape, part in parts:
        pieces.append(Piece(source, full_shape, dim, part.start, part.stop, offset))
        offset += len(part)
    first = parts[0][1]
    return Shard((*first[:dim], offset, *first[dim + 1 :]), tuple(pieces))


def vocab_shard(source: str, full_shape: tuple[int, ...], *, tp_size: int, tp_rank: int) -> Shard:
    """This rank's rows of a (vocab, ...) tensor, padded with zeros to equal parts on all ranks."""
    vocab_size, rest = full_shape[0], full_shape[1:]
    rows = -(-vocab_size // tp_size)
    start = min(tp_rank * rows, vocab_size)
    stop = min(start + rows, vocab_size)
    pieces = (Piece(source, full_shape, 0, start, stop),) if start < stop else ()
    return Shard((rows, *rest), pieces)


@dataclass(frozen=True)
class HeadShard:
    """The query heads of one rank and the KV heads that serve exactly those, as global indices."""

    heads: range
    kv_heads: range

    def rows(self, head_dim: int) -> range:
        """Rows of wq (columns of wo) of the query heads."""
        return range(self.heads.start * head_dim, self.heads.stop * head_dim)

    def kv_rows(self, head_dim: int) -> range:
        """Rows of wk and wv of the KV heads."""
        return range(self.kv_heads.start * head_dim, self.kv_heads.stop * head_dim)


def head_shard(n_heads: int, n_kv_heads: int, *, tp_size: int, tp_rank: int) -> HeadShard:
    """Balanced contiguous heads: whole KV groups while tp_size <= n_kv_heads, else parts of one
    group.

    Above n_kv_heads each rank holds one KV head (a copy) and a balanced part of its query heads, so
    the number of query heads per local KV head is the same for all KV heads of a rank. Raises
    UsageError when n_kv_heads does not divide n_heads or tp_size exceeds n_heads.
    """
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise UsageError(f"n_kv_heads {n_kv_heads} does not divide n_heads {n_heads}")
    if tp_size > n_heads:
        raise UsageError(f"tp_size {tp_size} exceeds n_heads {n_heads}; use at most {n_heads}")
    assert 0 <= tp_rank < tp_size, (tp_rank, tp_size)
    group = n_heads // n_kv_heads
    if tp_size <= n_kv_heads:
        kv_heads = partition(n_kv_heads, tp_size)[tp_rank]
        return HeadShard(range(kv_heads.start * group, kv_heads.stop * group), kv_heads)
    ranks_of_kv_head = partition(tp_size, n_kv_heads)
    kv_head = next(k for k, ranks in enumerate(ranks_of_kv_head) if tp_rank in ranks)
    ranks = ranks_of_kv_head[kv_head]
    part = partition(group, len(ranks))[tp_rank - ranks.start]
    first = kv_head * group
    return HeadShard(range(first + part.start, first + part.stop), range(kv_head, kv_head + 1))


FFN_UNIT = 128
"""FFN columns are dealt in units of this many where they can: kernels and int4 groups like it."""


def ffn_shard(ffn_dim: int, *, tp_size: int, tp_rank: int) -> range:
    """This rank's feed-forward columns. Raises UsageError when tp_size exceeds ffn_dim."""
    if tp_size > ffn_dim:
        raise UsageError(f"tp_size {tp_size} exceeds ffn_dim {ffn_dim}; use at most {ffn_dim}")
    return partition_units(ffn_dim, tp_size, unit=FFN_UNIT)[tp_rank]


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
