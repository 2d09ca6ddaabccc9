"""What a rank's line says."""

from __future__ import annotations

from llama.engine.runner import RunnerStats
from llama.engine.stats import RankStats, gather_stats
from llama.parallel.context import ParallelContext
from tests.helpers.ranks import run_layout


def test_one_line_a_rank() -> None:
    stats = RankStats(
        rank=3,
        pp_rank=1,
        tp_rank=0,
        busy_s=1.5,
        wall_s=2.0,
        n_plans=12,
        n_tokens=345,
        most_in_flight=2,
    )
    assert stats.busy_share == 0.75
    assert str(stats) == (
        "rank 3 (stage 1, tp 0): busy 75% of 2.00 s, 12 plans, 345 tokens, "
        "at most 2 plans in flight"
    )


def test_nothing_was_run() -> None:
    idle = RankStats(0, 0, 0, 0.0, 0.0, 0, 0, 0)
    assert idle.busy_share == 0 and "busy 0% of 0.00 s" in str(idle)


def gather(context: ParallelContext) -> list[RankStats]:
    """Rank r was busy r of 10 s over 100 + r plans; only leaders know what was in flight."""
    rank = context.rank
    mine = RunnerStats(busy_s=float(rank), n_plans=100 + rank, n_tokens=2**40 + rank)
    in_flight = 5 + rank if context.is_leader else 0
    return gather_stats(mine, wall_s=10.0, most_in_flight=in_flight, context=context)


def test_every_rank_gets_all_in_rank_order() -> None:
    expected = [
        RankStats(rank, rank % 2, 0, float(rank), 10.0, 100 + rank, 2**40 + rank, leader + 5)
        for rank, leader in enumerate((0, 0, 2, 2))
    ]
    for found in run_layout(gather, pp=2, dp=2):
        assert found == expected
