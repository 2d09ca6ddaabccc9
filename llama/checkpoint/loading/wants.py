"""What every rank of a host wants of a checkpoint: which region of which tensor.

Each rank says what it wants once, in numbers; from then on all know the same and can decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llama.checkpoint.loading.box import Box
from llama.checkpoint.reader import CheckpointReader
from llama.parallel.comm import Communicator
from llama.parallel.shard import Piece
from llama.quant.base import Intake

_WHOLE = -1


@dataclass(frozen=True)
class Want:
    """Rank `rank` (of the host) wants `box` of tensor number `tensor`."""

    rank: int
    tensor: int
    box: Box


@dataclass(frozen=True)
class OwnWant:
    """A region that this rank wants, and `intake`, where it belongs."""

    tensor: int
    box: Box
    intake: Intake


class Catalogue:
    """The tensors of a checkpoint by number, the same on every rank that opened the same files.

    A tied tensor has one number under all its names.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        names = sorted(reader.tensors)
        self.tensors = [reader.tensors[name] for name in names]
        first: dict[int, int] = {}
        for number, tensor in enumerate(self.tensors):
            first.setdefault(id(tensor), number)
        self._numbers = {
            name: first[id(tensor)] for name, tensor in zip(names, self.tensors, strict=True)
        }

    def number(self, name: str) -> int:
        return self._numbers[name]

    def box(self, tensor: int, dim: int, start: int, stop: int) -> Box:
        whole = Box.whole(self.tensors[tensor].shape)
        return whole if dim == _WHOLE else whole.narrow(dim, start, stop)


def own_want(
    intake: Intake, piece: Piece, name: str, catalogue: Catalogue
) -> tuple[OwnWant, tuple[int, ...]]:
    """What `piece` asks of the tensor `name`, and the same as four numbers."""
    number = catalogue.number(name)
    row = (number, _WHOLE, 0, 0)
    if piece.dim is not None:
        row = (number, piece.dim, piece.start, piece.stop)
    return OwnWant(number, catalogue.box(*row), intake), row


def share_wants(
    rows: Sequence[tuple[int, ...]], catalogue: Catalogue, local: Communicator
) -> list[Want]:
    """The wants of all ranks of `local`, in rank order. Collective."""
    counts = local.all_gather(torch.tensor([len(rows)]), dim=0).tolist()
    padded = torch.zeros(1, max(counts), 4, dtype=torch.int64)
    if rows:
        padded[0, : len(rows)] = torch.tensor(rows)
    everyone = local.all_gather(padded, dim=0).tolist()
    return [
        Want(rank, row[0], catalogue.box(*row))
        for rank, count in enumerate(counts)
        for row in everyone[rank][:count]
    ]


def by_tensor(wants: Iterable[Want]) -> Iterator[tuple[int, list[Want]]]:
    """The wants of each tensor, in the order of their numbers."""
    found: dict[int, list[Want]] = {}
    for want in wants:
        found.setdefault(want.tensor, []).append(want)
    yield from sorted(found.items())
