"""Regions of a tensor, against the elements that torch finds in them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama.checkpoint.loading.box import Box

WHOLE = Box.whole((5, 7))
RANGES = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted)
BOXES = st.tuples(RANGES, RANGES).map(lambda r: Box((r[0][0], r[1][0]), (r[0][1], r[1][1])))
NUMBERS = torch.arange(35).view(5, 7)


def elements(box: Box) -> set[int]:
    return set(NUMBERS[box.within(WHOLE)].flatten().tolist())


@given(BOXES, BOXES)
def test_two_boxes_meet_in_the_elements_of_both(one: Box, other: Box) -> None:
    assert elements(one & other) == elements(one) & elements(other)
    assert (one & other).numel == len(elements(one) & elements(other))


@given(BOXES, BOXES)
def test_the_box_around_two_has_both_and_sides_of_theirs(one: Box, other: Box) -> None:
    around = Box.around([one, other])
    assert elements(around) >= elements(one) | elements(other)
    assert set(around.start) <= {*one.start, *other.start}


@given(BOXES, st.integers(1, 40), st.permutations([0, 1]))
def test_the_pieces_of_a_box_make_it_up(box: Box, limit: int, order: list[int]) -> None:
    pieces = list(box.cut(limit, order=order))
    assert all(1 <= piece.numel <= limit for piece in pieces)
    found = [number for piece in pieces for number in elements(piece)]
    assert sorted(found) == sorted(elements(box))


def test_the_outermost_dim_is_cut_first() -> None:
    shapes = [piece.shape for piece in WHOLE.cut(15, order=[0, 1])]
    assert shapes == [(2, 7), (2, 7), (1, 7)]
    assert [piece.shape for piece in WHOLE.cut(15, order=[1, 0])] == [(5, 3), (5, 3), (5, 1)]


@pytest.mark.parametrize("dim", [0, 1])
def test_narrow_counts_as_the_box_does(dim: int) -> None:
    box = Box((1, 2), (4, 6)).narrow(dim, 3, 4)
    assert elements(box) == elements(WHOLE.narrow(dim, 3, 4) & Box((1, 2), (4, 6)))
