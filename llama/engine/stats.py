"""What every rank did: busy share per stage and speed, gathered once at the end of a job."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llama.engine.runner import RunnerStats
from llama.parallel.context import ParallelContext
from llama.parallel.liveness.whereabouts import Phase


@dataclass(frozen=True)
class RankStats:
    """One rank's work since the engine was built. `most_in_flight` is of its leader."""

    rank: int
    pp_rank: int
    tp_rank: int
    busy_s: float
    wall_s: float
    n_plans: int
    n_tokens: int
    most_in_flight: int

    @property
    def busy_share(self) -> float:
        """Part of the time inside `generate` that this rank computed, waiting for nobody."""
        return self.busy_s / self.wall_s if self.wall_s else 0.0

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (stage {self.pp_rank}, tp {self.tp_rank}): busy "
            f"{self.busy_share:.0%} of {self.wall_s:.2f} s, {self.n_plans} plans, "
            f"{self.n_tokens} tokens, at most {self.most_in_flight} plans in flight"
        )


def gather_stats(
    stats: RunnerStats, *, wall_s: float, most_in_flight: int, context: ParallelContext
) -> list[RankStats]:
    """Every rank's stats in rank order. Collective over the world."""
    mine = torch.tensor(
        [[stats.busy_s, wall_s, stats.n_plans, stats.n_tokens, most_in_flight]],
        dtype=torch.float64,
    )
    with context.whereabouts.during(Phase.WAIT, "waiting for all ranks' figures"):
        rows = context.world.all_gather(mine, dim=0).tolist()
    gathered = []
    for rank, (busy_s, wall, n_plans, n_tokens, _) in enumerate(rows):
        at = context.layout.coordinates(rank)
        leader = context.layout.rank_at(at.dp_rank, 0, 0)
        gathered.append(
            RankStats(
                rank=rank,
                pp_rank=at.pp_rank,
                tp_rank=at.tp_rank,
                busy_s=busy_s,
                wall_s=wall,
                n_plans=int(n_plans),
                n_tokens=int(n_tokens),
                most_in_flight=int(rows[leader][4]),
            )
        )
    return gathered
