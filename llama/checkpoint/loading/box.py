"""A rectangular region of a tensor, and how regions meet. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """Items `start..stop` of every dim."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box:
        """The smallest that has all `boxes`, which is at least one, in it."""
        boxes = list(boxes)
        starts = zip(*(box.start for box in boxes), strict=True)
        stops = zip(*(box.stop for box in boxes), strict=True)
        return cls(tuple(map(min, starts)), tuple(map(max, stops)))

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = zip(self.start, self.stop, strict=True)
        return tuple(max(0, stop - start) for start, stop in sizes)

    @property
    def numel(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product

    def narrow(self, dim: int, start: int, stop: int) -> Box:
        """The same with only items `start..stop` of dim `dim`, counted as this box counts."""
        starts, stops = list(self.start), list(self.stop)
        starts[dim], stops[dim] = start, stop
        return Box(tuple(starts), tuple(stops))

    def __and__(self, other: Box) -> Box:
        """What both have; its numel is 0 where they do not meet."""
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(map(max, start, map(min, self.stop, other.stop))))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Where this box is in a tensor that holds exactly `outer`."""
        return tuple(
            slice(start - first, stop - first)
            for start, stop, first in zip(self.start, self.stop, outer.start, strict=True)
        )

    def cut(self, limit: int, *, order: Sequence[int]) -> Iterator[Box]:
        """Boxes of at most `limit` items, or of one, that make up this one.

        The first dims of `order` are cut first, so all but those stay whole as long as they can.
        """
        if self.numel == 0:
            return
        if self.numel <= limit or not order:
            yield self
            return
        dim, *rest = order
        step = max(1, limit * self.shape[dim] // self.numel)
        for start in range(self.start[dim], self.stop[dim], step):
            part = self.narrow(dim, start, min(start + step, self.stop[dim]))
            yield from part.cut(limit, order=rest)
