"""What a layout moves: between ranks for every token, and from the files to every rank at start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.reader import CheckpointReader
from llama.parallel.shard import Piece


@dataclass(frozen=True)
class Traffic:
    """What one rank puts into collectives and messages for one token that is generated.

    Bytes are those of the tensors, whatever the transport makes of them: a ring sends almost twice
    those of an all-reduce.
    """

    all_reduces: int
    all_reduce_bytes: int
    gather_bytes: int
    send_bytes: int

    @property
    def collectives(self) -> int:
        return self.all_reduces + bool(self.gather_bytes) + bool(self.send_bytes)

    @property
    def total_bytes(self) -> int:
        return self.all_reduce_bytes + self.gather_bytes + self.send_bytes


def traffic_of(
    *,
    n_layers: int,
    dim: int,
    vocab_size: int,
    itemsize: int,
    tp_size: int,
    is_first: bool,
    is_last: bool,
) -> Traffic:
    """Two sums a layer and one over the embedding; the logits' parts; the next stage's input."""
    all_reduces = (2 * n_layers + is_first) if tp_size > 1 else 0
    own_logits = -(-vocab_size // tp_size) * itemsize
    return Traffic(
        all_reduces=all_reduces,
        all_reduce_bytes=all_reduces * dim * itemsize,
        gather_bytes=own_logits if is_last and tp_size > 1 else 0,
        send_bytes=0 if is_last else dim * itemsize,
    )


def bytes_to_read(
    reader: CheckpointReader, needs: Sequence[Iterable[tuple[Piece, str]]]
) -> list[int]:
    """Bytes that each rank of one host reads, when what several need is read once and dealt out.

    `needs[rank]` are pieces and the names of their tensors. Pieces that are cut along a dim whose
    items lie scattered in the file count as all of it.
    """
    wanted: dict[Path, list[tuple[int, int, int]]] = defaultdict(list)
    for rank, pieces in enumerate(needs):
        for piece, name in pieces:
            for path, begin, end in _read_for(reader.tensors[name], piece).extents():
                wanted[path].append((begin, end, rank))
    shares = [0.0] * len(needs)
    for extents in wanted.values():
        _deal(extents, shares)
    return [round(share) for share in shares]


def _read_for(tensor: StoredTensor, piece: Piece) -> StoredTensor:
    """The part of `tensor` whose bytes are fetched for `piece`."""
    if piece.dim is None:
        return tensor
    if piece.dim == 0:
        return tensor.narrow(0, piece.start, piece.stop - piece.start)
    if tensor.dim != piece.dim:
        return tensor
    parts, offset = [], 0
    for part in tensor.parts:
        size = part.shape[piece.dim]
        if offset < piece.stop and piece.start < offset + size:
            parts.append(part)
        offset += size
    return StoredTensor.of(parts, dim=piece.dim)


def _deal(extents: Sequence[tuple[int, int, int]], shares: list[float]) -> None:
    """Add to `shares` each rank's part of the bytes of one file, split among those that want it."""
    edges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for begin, end, rank in extents:
        edges[begin].append((rank, 1))
        edges[end].append((rank, -1))
    counts = [0] * len(shares)
    before = 0
    for at in sorted(edges):
        ranks = [rank for rank, count in enumerate(counts) if count]
        for rank in ranks:
            shares[rank] += (at - before) / len(ranks)
        for rank, change in edges[at]:
            counts[rank] += change
        before = at
