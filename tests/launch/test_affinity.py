"""Shares of cores: even, of one memory node where that is possible, never half of a core."""

from __future__ import annotations

import os

import pytest

from launch.affinity import order_cpus, parse_cpu_list, share, shares_of_this_machine

# two nodes of two physical cores with two threads each, numbered as x86 servers do
NODES = {0: "0-1,4-5\n", 1: "2-3,6-7\n"}
SIBLINGS = {cpu: f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3,8,10-11\n", (0, 1, 2, 3, 8, 10, 11)),
        ("5", (5,)),
        ("", ()),
        ("\n", ()),
        ("junk", ()),
    ],
)
def test_cpu_lists(text: str, expected: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == expected


def test_cores_are_ordered_by_node_and_then_by_physical_core() -> None:
    cpus = order_cpus(range(8), node_lists=NODES, sibling_lists=SIBLINGS)
    assert cpus == (0, 4, 1, 5, 2, 6, 3, 7)


def test_only_usable_cores_are_given_away() -> None:
    assert order_cpus({7, 1, 6}, node_lists=NODES, sibling_lists=SIBLINGS) == (1, 6, 7)


def test_a_system_that_says_nothing_has_cores_in_their_order() -> None:
    assert order_cpus({3, 1, 2}, node_lists={}, sibling_lists={}) == (1, 2, 3)


@pytest.mark.parametrize(
    ("n_ranks", "expected"),
    [
        (1, [{0, 1, 2, 3, 4, 5, 6, 7}]),
        (2, [{0, 1, 4, 5}, {2, 3, 6, 7}]),
        (4, [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        (3, [{0, 4}, {1, 5, 2}, {6, 3, 7}]),
        (9, [set()] * 9),
    ],
)
def test_shares(n_ranks: int, expected: list[set[int]]) -> None:
    cpus = order_cpus(range(8), node_lists=NODES, sibling_lists=SIBLINGS)
    assert list(share(cpus, n_ranks)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
def test_this_machine_is_shared_out_once() -> None:
    usable = os.sched_getaffinity(0)
    shares = shares_of_this_machine(len(usable))
    if len(usable) > 1:
        assert sorted(cpu for own in shares for cpu in own) == sorted(usable)
    assert shares_of_this_machine(1) == (frozenset(),)
