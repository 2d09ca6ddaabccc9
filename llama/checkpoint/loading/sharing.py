"""Who of a host reads what: each rank its own, and once for all what several ranks would touch.

Whole tensors that ranks have copies of, and slices that lie between each other in a file, are dealt
to readers who hand them on. Every rank comes to the same plan by itself. Nothing is read here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from llama.checkpoint.loading.box import Box
from llama.checkpoint.loading.tile import Tile, tiles
from llama.checkpoint.loading.wants import Catalogue, Want, by_tensor

_ALIGNMENT = 64
"""Of tiles in a slot, so that any dtype can be viewed there."""
_LEAST_SHARE_BYTES = 2**20


@dataclass(frozen=True)
class Handed:
    """A tile that rank `reader` puts at byte `offset` of its slot."""

    tile: Tile
    reader: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """`own` are tiles that this rank alone reads; `common` are read once for several ranks."""

    own: tuple[Tile, ...]
    common: tuple[Tile, ...]

    @property
    def common_bytes(self) -> int:
        return sum(tile.nbytes for tile in self.common)

    def digest(self) -> str:
        """Differs between ranks that would not hand on the same bytes."""
        lines = [f"{t.tensor} {t.box} {t.part.dtype} {t.part.hull}" for t in self.common]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def rounds(self, *, n_ranks: int, slot_bytes: int) -> Iterator[list[Handed]]:
        """The common tiles in turns; in each, every rank fills at most `slot_bytes` of its slot."""
        share = -(-self.common_bytes // n_ranks)
        room = min(slot_bytes, max(_LEAST_SHARE_BYTES, _aligned(share)))
        turn: list[Handed] = []
        reader = used = 0
        for tile in (piece for whole in self.common for piece in whole.cut(room)):
            if used + tile.nbytes > room:
                reader, used = reader + 1, 0
            if reader == n_ranks:
                yield turn
                turn, reader = [], 0
            turn.append(Handed(tile, reader, used))
            used = _aligned(used + tile.nbytes)
        if turn:
            yield turn


def plan_for(rank: int, wants: Sequence[Want], catalogue: Catalogue) -> Plan:
    """The plan of the host's rank `rank`. Each list is in the order of the files."""
    own: list[Tile] = []
    common: list[Tile] = []
    files: dict[Path | None, int] = {}

    def place(tile: Tile) -> tuple[int, int, int]:
        return files[tile.part.path], *tile.part.hull

    for number, wanted in by_tensor(wants):
        for whole in tiles(number, catalogue.tensors[number]):
            files.setdefault(whole.part.path, len(files))
            boxes = [(want.rank, want.box & whole.box) for want in wanted]
            boxes = [(who, box) for who, box in boxes if box.numel]
            if _is_common(whole, boxes):
                common.append(whole.sub(Box.around(box for _, box in boxes)))
            else:
                different = dict.fromkeys(box for who, box in boxes if who == rank)
                own += map(whole.sub, different)
    return Plan(tuple(sorted(own, key=place)), tuple(sorted(common, key=place)))


def _is_common(whole: Tile, boxes: Sequence[tuple[int, Box]]) -> bool:
    """Whether what two ranks want lies so that one would read over what the other reads."""
    if whole.part.path is None:
        return False
    hulls = [(who, whole.sub(box).part.hull) for who, box in boxes]
    return any(
        first != second and max(a[0], b[0]) < min(a[1], b[1])
        for (first, a), (second, b) in combinations(hulls, 2)
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
