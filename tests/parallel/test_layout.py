"""Rank arithmetic on grids up to 16 x 16 x 16, and stage cuts against brute force."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.errors import UsageError
from llama.parallel.layout import ParallelLayout, partition, partition_units, stage_layers

GRIDS = list(product((1, 2, 3, 5, 8, 16), repeat=3))
SIZES = range(1, 17)
costs = st.integers(0, 50)


@pytest.mark.parametrize(("tp", "pp", "dp"), [(2, 2, 2), (16, 1, 1), (1, 16, 2), (3, 5, 4)])
def test_rank_order_is_that_of_a_reshaped_range(tp: int, pp: int, dp: int) -> None:
    layout = ParallelLayout(tp, pp, dp)
    in_order = [
        (d, p, t) for d, p, t in product(range(dp), range(pp), range(tp))
    ]  # fmt: skip
    for rank, (d, p, t) in enumerate(in_order):
        at = layout.coordinates(rank)
        assert (at.dp_rank, at.pp_rank, at.tp_rank) == (d, p, t)
        assert layout.rank_at(d, p, t) == rank
    assert layout.world_size == len(in_order)


@pytest.mark.parametrize("kind", ["tp_group", "pp_group", "dp_group", "replica_group"])
def test_groups_of_an_axis_tile_the_world(kind: str) -> None:
    for grid in GRIDS:
        layout = ParallelLayout(*grid)
        if layout.world_size > 640:
            continue
        group_of = getattr(layout, kind)
        for rank in range(layout.world_size):
            group = group_of(rank)
            assert rank in group
            assert all(group_of(peer) == group for peer in (group[0], group[-1]))
        groups = {group_of(rank) for rank in range(layout.world_size)}
        assert sorted(rank for group in groups for rank in group) == [*range(layout.world_size)]


@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(SIZES), st.data())
def test_position_in_a_group_is_the_coordinate(
    tp: int, pp: int, dp: int, data: st.DataObject
) -> None:
    layout = ParallelLayout(tp, pp, dp)
    rank = data.draw(st.integers(0, layout.world_size - 1))
    at = layout.coordinates(rank)
    assert layout.tp_group(rank)[at.tp_rank] == rank
    assert layout.pp_group(rank)[at.pp_rank] == rank
    assert layout.dp_group(rank)[at.dp_rank] == rank
    assert layout.replica_group(rank)[at.pp_rank * tp + at.tp_rank] == rank
    assert layout.coordinates(layout.replica_group(rank)[0]).tp_rank == 0
    assert layout.coordinates(layout.replica_group(rank)[0]).pp_rank == 0


def test_what_does_not_divide_the_world_is_refused_with_a_way_out() -> None:
    for world, tp, pp in product(SIZES, SIZES, SIZES):
        if world % (tp * pp) == 0:
            layout = ParallelLayout.for_world(world, tp_size=tp, pp_size=pp)
            assert (layout.tp_size, layout.pp_size, layout.world_size) == (tp, pp, world)
        else:
            with pytest.raises(UsageError, match=f"multiple of {tp * pp} ranks"):
                ParallelLayout.for_world(world, tp_size=tp, pp_size=pp)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "2", None])
def test_sizes_are_integers_from_one(size: object) -> None:
    for name in ("tp_size", "pp_size", "dp_size"):
        with pytest.raises(UsageError, match=name):
            ParallelLayout(**{name: size})  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(UsageError, match=f"rank {rank} is outside"):
        ParallelLayout(2, 2).coordinates(rank)


def test_partition_tiles_with_sizes_that_differ_by_one_at_most() -> None:
    for total, parts in product(range(40), SIZES):
        pieces = partition(total, parts)
        assert [i for piece in pieces for i in piece] == [*range(total)]
        lengths = [len(piece) for piece in pieces]
        assert len(lengths) == parts
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1


@given(st.integers(1, 3000), st.sampled_from(SIZES), st.sampled_from([1, 2, 8, 128]))
def test_partition_units_keeps_units_whole_where_everybody_gets_one(
    total: int, parts: int, unit: int
) -> None:
    pieces = partition_units(total, parts, unit=unit)
    assert [i for piece in pieces for i in piece] == [*range(total)]
    assert len(pieces) == parts
    if total % unit == 0 and total // unit >= parts:
        assert all(piece.start % unit == 0 and len(piece) >= unit for piece in pieces)
    else:
        assert pieces == partition(total, parts)


def splits(n_layers: int, pp: int) -> list[tuple[range, ...]]:
    """Every way to cut the layers into non-empty stages."""
    cuts = combinations(range(1, n_layers), pp - 1)
    return [tuple(range(a, b) for a, b in pairwise((0, *cut, n_layers))) for cut in cuts]


def stage_costs(stages: tuple[range, ...], layers: list[int], first: int, last: int) -> list[int]:
    found = [sum(layers[i] for i in stage) for stage in stages]
    found[0] += first
    found[-1] += last
    return found


@settings(max_examples=300)
@given(st.lists(costs, min_size=1, max_size=9), st.integers(1, 9), costs, costs)
def test_stages_tile_the_layers_and_the_costliest_is_minimal(
    layers: list[int], pp: int, first: int, last: int
) -> None:
    pp = min(pp, len(layers))
    stages = stage_layers(layers, pp, first_cost=first, last_cost=last)
    assert stages in splits(len(layers), pp)  # tiles, in order, none empty
    best = min(max(stage_costs(s, layers, first, last)) for s in splits(len(layers), pp))
    assert max(stage_costs(stages, layers, first, last)) == best


@given(st.integers(1, 80), st.integers(1, 16))
def test_equal_layers_are_dealt_evenly(n_layers: int, pp: int) -> None:
    pp = min(pp, n_layers)
    lengths = [len(stage) for stage in stage_layers([1] * n_layers, pp)]
    assert sum(lengths) == n_layers
    assert max(lengths) - min(lengths) <= 1


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert [len(s) for s in stage_layers([1] * 8, 2, last_cost=4)] == [6, 2]
    assert [len(s) for s in stage_layers([1] * 8, 2, first_cost=4)] == [2, 6]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"pp_size 3 exceeds n_layers 2; use at most 2"):
        stage_layers([1, 1], 3)
