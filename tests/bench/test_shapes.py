"""Shapes count their own bytes and operations, and are found by name."""

from __future__ import annotations

import pytest

from llama.bench.shapes import SHAPES, find_shape
from llama.errors import UnknownNameError
from llama.models.decoder import tensor_names


def test_what_a_step_reads_is_counted_from_the_shape() -> None:
    shape = find_shape("1b")
    per_layer = 2048 * (2 * 2048 + 2 * 4 * 64) + 3 * 2048 * 5632
    assert shape.product_parameters == 22 * per_layer + 32000 * 2048
    assert shape.n_parameters == shape.product_parameters + 32000 * 2048
    assert shape.kv_bytes(10, item_bytes=4) == 10 * 22 * 2 * 4 * 64 * 4


def test_a_prompt_passes_the_head_once() -> None:
    shape = find_shape("tiny")
    config = shape.config
    blocks = shape.product_parameters - config.vocab_size * config.dim
    scores = config.n_layers * config.n_heads * 2 * 2 * config.head_dim * (8 * 8) / 2
    assert shape.prompt_flop(8) == 2 * 8 * blocks + 2 * config.vocab_size * config.dim + scores


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_model_that_can_be_loaded(name: str) -> None:
    assert len(tensor_names(SHAPES[name].config)) > 2


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown shape '2b'; known: tiny, 110m, 1b, 7b, 8b"):
        find_shape("2b")
