"""Settings that differ are told apart by field, value, rank and host; errors reach every rank."""

from __future__ import annotations

from typing import Any

import pytest

from llama.errors import (
    CheckpointError,
    FailedElsewhereError,
    PeerLostError,
    RankMismatchError,
    UsageError,
)
from llama.parallel.agreement import check_agreement, differences, in_step, share_texts
from llama.parallel.context import ParallelContext, single
from tests.helpers.ranks import run_layout

TEXTS = ["", "a", "é\n" * 1000, '{"x": 1}']


def share(context: ParallelContext) -> list[list[str]]:
    mine = TEXTS[context.rank]
    return [share_texts(context.world, mine), share_texts(context.world, "")]


def test_texts_of_any_length_reach_everybody() -> None:
    assert run_layout(share, tp=3) == [[TEXTS[:3], [""] * 3]] * 3


def agree(context: ParallelContext, table: list[dict[str, Any]]) -> str:
    try:
        context.agree(table[context.rank])
    except RankMismatchError as error:
        return str(error).replace(context.host, "HOST")
    return "agreed"


SAME = {"seed": 1, "dtype": "float32", "sizes": (1, 2), "nan": float("nan"), "nested": {"b": [1]}}


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({}, "agreed"),
        ({"seed": 2}, "seed: 1 on ranks 0, 2; 2 on rank 1 (HOST)"),
        ({"seed": "1"}, 'seed: 1 on ranks 0, 2; "1" on rank 1 (HOST)'),
        ({"seed": True}, "seed: 1 on ranks 0, 2; true on rank 1 (HOST)"),
        ({"nested": {"b": [2]}}, 'nested: {"b": [1]} on ranks 0, 2; {"b": [2]} on rank 1 (HOST)'),
        ({"extra": 0}, "extra: absent on ranks 0, 2; 0 on rank 1 (HOST)"),
    ],
)
def test_what_differs_is_named(odd: dict[str, Any], message: str) -> None:
    found = run_layout(agree, [SAME, {**SAME, **odd}, SAME], tp=3)
    assert len(set(found)) == 1
    assert found[0].endswith(message)


def test_long_values_are_shortened_but_still_told_apart() -> None:
    long = "x" * 100_000
    (message, _) = run_layout(agree, [{"p": long + "a"}, {"p": long + "b"}], tp=2)
    assert len(message) < 500
    assert message.count("100003 characters") == 2


def table(*rows: dict[str, Any]) -> list[str]:
    """The lines about ranks with these values, two ranks a host."""
    replies = [{"host": f"host{rank // 2}", "values": row} for rank, row in enumerate(rows)]
    header, *lines = differences(replies).splitlines()
    assert header == "give every rank the same; they disagree about"
    return lines


def test_only_differing_fields_have_a_line() -> None:
    assert table({"a": 1, "b": 0, "c": 1}, {"a": 2, "b": 0, "c": 2}) == [
        "  a: 1 on rank 0; 2 on rank 1 (host0)",
        "  c: 1 on rank 0; 2 on rank 1 (host0)",
    ]


def test_many_ranks_and_hosts_fit_on_a_line() -> None:
    odd = [{"a": int(rank in (3, 4, 5, 9))} for rank in range(10)]
    assert table(*odd) == [
        "  a: 0 on ranks 0-2, 6-8; 1 on ranks 3 (host1), 4, 5 (host2), 9 (host4)"
    ]
    (line,) = table(*({"a": rank} for rank in range(10)))
    assert line.endswith("2 on rank 2 (host1); 3 on rank 3 (host1); 6 other values on the rest")


def test_the_table_is_no_longer_than_a_screen() -> None:
    lines = table(*({f"field {n}": rank for n in range(50)} for rank in range(2)))
    assert len(lines) == 17 and lines[-1] == "  and 34 more"


def leave(context: ParallelContext) -> list[bool]:
    is_leaving = [context.rank == 1, False]
    return [
        check_agreement(context.world, {"a": 1}, host="", is_leaving=flag) for flag in is_leaving
    ]


def test_all_hear_that_one_is_leaving() -> None:
    assert run_layout(leave, tp=3) == [[True, False]] * 3


FAILING: dict[int, Exception] = {
    1: CheckpointError("shard 1 is broken"),
    2: UsageError("bad size"),
}


class Foreign(Exception):
    pass


def fail_together(context: ParallelContext, failing: dict[int, Exception]) -> list[str]:
    seen = []
    with context.together("warming up"):
        seen.append("went well")
    try:
        with context.together("loading the weights"):
            if context.rank in failing:
                raise failing[context.rank]
    except Exception as error:
        seen.append(f"{type(error).__name__}: {error}".replace(context.host, "HOST"))
    with context.together("going on"):
        seen.append("goes on")
    return seen


def test_one_failing_rank_raises_everywhere() -> None:
    there = "CheckpointError: shard 1 is broken"
    elsewhere = f"CheckpointError: rank 1 (HOST) failed while loading the weights: {there}"
    for rank, seen in enumerate(run_layout(fail_together, {1: FAILING[1]}, tp=3)):
        assert seen == ["went well", there if rank == 1 else elsewhere, "goes on"]


def test_several_failing_ranks_are_all_named_the_lowest_first() -> None:
    found = [seen[1] for seen in run_layout(fail_together, FAILING, tp=3)]
    assert found[1:] == ["CheckpointError: shard 1 is broken", "UsageError: bad size"]
    assert found[0] == (
        "CheckpointError: rank 1 (HOST) failed while loading the weights: CheckpointError: shard 1 "
        "is broken; rank 2 (HOST) failed while loading the weights: UsageError: bad size"
    )


@pytest.mark.parametrize("error", [Foreign("odd"), KeyError("k"), ImportError("os")])
def test_a_class_that_is_not_ours_becomes_the_base_class_elsewhere(error: Exception) -> None:
    here, there = run_layout(fail_together, {1: error}, tp=2)
    kind = type(error).__name__
    assert there[1] == f"{kind}: {error}"
    assert here[1].startswith("LlamaError: rank 1 (HOST) failed while loading the weights: " + kind)


def lose_a_peer_in_the_body(context: ParallelContext) -> None:
    import os

    with context.together("loading the weights"):
        if context.rank == 1:
            os._exit(1)


def test_a_rank_that_dies_in_the_body_is_lost() -> None:
    error, _ = run_layout(lose_a_peer_in_the_body, tp=2, expect_error=True)
    assert type(error) is PeerLostError


def fail_while_a_peer_dies(context: ParallelContext) -> None:
    import os

    with context.together("loading the weights"):
        if context.rank == 1:
            os._exit(1)
        raise CheckpointError("my own trouble")


def test_ones_own_error_outlives_the_loss_of_a_peer() -> None:
    error, _ = run_layout(fail_while_a_peer_dies, tp=2, expect_error=True)
    assert type(error) is CheckpointError


def test_one_process_agrees_with_itself_and_keeps_its_errors() -> None:
    context = single()
    context.agree({"anything": object()})
    with pytest.raises(CheckpointError, match=r"^mine$"), context.together("loading"):
        raise CheckpointError("mine")


def step_with_an_error(context: ParallelContext, failing: int) -> str:
    try:
        with in_step(context.world):
            if context.rank == failing:
                raise UsageError("mine")
    except (UsageError, FailedElsewhereError) as error:
        return type(error).__name__
    return "all well"


def test_a_step_is_left_by_all_ranks_alike() -> None:
    assert run_layout(step_with_an_error, 5, tp=3) == ["all well"] * 3
    others = "FailedElsewhereError"
    assert run_layout(step_with_an_error, 1, tp=3) == [others, "UsageError", others]


def fail_in_step(context: ParallelContext) -> str:
    try:
        with context.together("stepping"), in_step(context.world):
            if context.rank == 1:
                raise UsageError("mine")
    except UsageError as error:
        return str(error).replace(context.host, "HOST")
    return ""


def test_who_failed_elsewhere_hears_the_cause() -> None:
    cause = "rank 1 (HOST) failed while stepping: UsageError: mine"
    assert run_layout(fail_in_step, tp=3) == [cause, "mine", cause]


def fail_elsewhere_only(context: ParallelContext) -> None:
    with context.together("stepping"):
        raise FailedElsewhereError("somewhere")


def test_without_a_cause_it_is_an_error_like_others() -> None:
    errors = run_layout(fail_elsewhere_only, tp=2, expect_error=True)
    assert all(isinstance(error, FailedElsewhereError) for error in errors)
