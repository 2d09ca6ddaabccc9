"""Where every rank sits in the data × pipeline × tensor grid. Pure arithmetic: no torch, no
processes.

The grid is `arange(world).reshape(dp, pp, tp)` with tp fastest, as in fairscale 0.4.13 and (for dp
= 1) Megatron. Peers always come from here: `rank ± 1` is wrong as soon as tp_size > 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from llama.errors import UsageError


@dataclass(frozen=True)
class Coordinates:
    """One rank's place on the three axes."""

    dp_rank: int
    pp_rank: int
    tp_rank: int


@dataclass(frozen=True)
class ParallelLayout:
    """The grid: `dp_size` replicas of a model cut into `pp_size` stages of `tp_size` ranks each."""

    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "dp_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")

    @classmethod
    def for_world(cls, world_size: int, *, tp_size: int, pp_size: int) -> ParallelLayout:
        """The layout of `world_size` ranks; what tp_size · pp_size leaves over becomes replicas.

        Raises UsageError when tp_size · pp_size does not divide world_size.
        """
        model_size = cls(tp_size, pp_size).world_size
        if world_size % model_size:
            divisors = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
            raise UsageError(
                f"tp_size {tp_size} x pp_size {pp_size} = {model_size} does not divide the "
                f"world size {world_size}; start a multiple of {model_size} ranks, or choose "
                f"sizes whose product is one of {divisors}"
            )
        return cls(tp_size, pp_size, world_size // model_size)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.dp_size

    @property
    def replica_size(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.tp_size * self.pp_size

    def coordinates(self, rank: int) -> Coordinates:
        if not 0 <= rank < self.world_size:
            raise UsageError(f"rank {rank} is outside the world of {self.world_size} ranks")
        rest, tp_rank = divmod(rank, self.tp_size)
        dp_rank, pp_rank = divmod(rest, self.pp_size)
        return Coordinates(dp_rank, pp_rank, tp_rank)

    def rank_at(self, dp_rank: int, pp_rank: int, tp_rank: int) -> int:
        return (dp_rank * self.pp_size + pp_rank) * self.tp_size + tp_rank

    def tp_group(self, rank: int) -> tuple[int, ...]:
        """Global ranks that share this rank's stage, in tp order."""
        at = self.coordinates(rank)
        return tuple(self.rank_at(at.dp_rank, at.pp_rank, tp) for tp in range(self.tp_size))

    def pp_group(self, rank: int) -> tuple[int, ...]:
        """Global ranks with this rank's tp_rank on every stage, first stage first."""
        at = self.coordinates(rank)
        return tuple(self.rank_at(at.dp_rank, pp, at.tp_rank) for pp in range(self.pp_size))

    def dp_group(self, rank: int) -> tuple[int, ...]:
        """Global ranks that hold the same weights as this rank, one per replica."""
        at = self.coordinates(rank)
        return tuple(self.rank_at(dp, at.pp_rank, at.tp_rank) for dp in range(self.dp_size))

    def replica_group(self, rank: int) -> tuple[int, ...]:
        """Global ranks of this rank's replica, stage by stage; the first one leads it."""
        first = self.coordinates(rank).dp_rank * self.replica_size
        return tuple(range(first, first + self.replica_size))


def partition(total: int, parts: int) -> tuple[range, ...]:
    """`range(total)` cut into `parts` contiguous pieces whose sizes differ by at most one, larger
    first.
    """
    size, larger = divmod(total, parts)
    starts = [part * size + min(part, larger) for part in range(parts + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(starts))


def partition_units(total: int, parts: int, *, unit: int) -> tuple[range, ...]:
    """As `partition`, in whole units where every part gets at least one, else in single items."""
    if total % unit or total // unit < parts:
        return partition(total, parts)
    return tuple(range(p.start * unit, p.stop * unit) for p in partition(total // unit, parts))


def stage_layers(
    layer_costs: Sequence[float], pp_size: int, *, first_cost: float = 0, last_cost: float = 0
) -> tuple[range, ...]:
    """Contiguous layers of each stage, the costliest stage as cheap as possible and none empty.

    `first_cost` is what only the first stage carries (embedding), `last_cost` only the last (norm
    and head), in the unit of `layer_costs`. Ties go to the more even split, then to longer later
    stages. Raises UsageError when there are more stages than layers.
    """
    n_layers = len(layer_costs)
    if pp_size > n_layers:
        raise UsageError(f"pp_size {pp_size} exceeds n_layers {n_layers}; use at most {n_layers}")
    before = [0.0, *accumulate(layer_costs)]
    # best[stage][stop]: (costliest, sum of squares, start) of the first stages, ending at `stop`
    best: list[dict[int, tuple[float, float, int]]] = [{0: (0.0, 0.0, 0)}]
    for stage in range(1, pp_size + 1):
        extra = (first_cost if stage == 1 else 0) + (last_cost if stage == pp_size else 0)
        row: dict[int, tuple[float, float, int]] = {}
        for stop in range(stage, n_layers - (pp_size - stage) + 1):
            candidates = []
            for start, (worst, squares, _) in best[-1].items():
                if start < stop:
                    cost = before[stop] - before[start] + extra
                    candidates.append((max(worst, cost), squares + cost * cost, start))
            row[stop] = min(candidates)
        best.append(row)
    bounds = [n_layers]
    for stage in range(pp_size, 0, -1):
        bounds.append(best[stage][bounds[-1]][2])
    bounds.reverse()
    return tuple(range(start, stop) for start, stop in pairwise(bounds))
