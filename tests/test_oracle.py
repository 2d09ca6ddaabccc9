"""The oracle that everything is measured against, measured against numbers and laws of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama.config import ModelConfig, RopeScaling
from tests.helpers import oracle
from tests.helpers.checkpoints import Weights, random_model, tiny_config

CONFIG = tiny_config()
TOKENS = [5, 17, 60, 3, 3, 41, 22, 9]


def half_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head reordered from pairs (2i, 2i + 1) to pairs (i, i + head_dim / 2)."""
    order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return weight.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


def in_half_style(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    turned = {
        name: half_rows(weight, config.head_dim) if ".wq." in name or ".wk." in name else weight
        for name, weight in weights.items()
    }
    return replace(config, rope_style="half"), turned


def test_one_token_worked_out_by_hand() -> None:
    """At position 0 nothing turns, and attention to oneself alone returns the value."""
    config = ModelConfig(
        dim=2,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=2,
        ffn_dim=1,
        vocab_size=2,
        norm_eps=1e-12,
    )
    layer = "layers.0."
    weights = {
        "tok_embeddings.weight": torch.tensor([[9.0, 9.0], [3.0, 4.0]]),
        layer + "attention_norm.weight": torch.tensor([1.0, 2.0]),
        layer + "attention.wq.weight": torch.randn(2, 2),
        layer + "attention.wk.weight": torch.randn(2, 2),
        layer + "attention.wv.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        layer + "attention.wo.weight": torch.tensor([[0.0, 5.0], [5.0, 0.0]]),
        layer + "ffn_norm.weight": torch.tensor([1.0, 1.0]),
        layer + "feed_forward.w1.weight": torch.tensor([[1.0, 0.0]]),
        layer + "feed_forward.w2.weight": torch.tensor([[1.0], [-1.0]]),
        layer + "feed_forward.w3.weight": torch.tensor([[0.0, 1.0]]),
        "norm.weight": torch.tensor([1.0, 1.0]),
        "output.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    }
    rms = math.sqrt((9 + 16) / 2)
    x = [3 + 5 * (2 * 4 / rms), 4 + 5 * (3 / rms)]
    rms = math.sqrt((x[0] ** 2 + x[1] ** 2) / 2)
    gate, up = x[0] / rms, x[1] / rms
    hidden = gate / (1 + math.exp(-gate)) * up
    x = [x[0] + hidden, x[1] - hidden]
    rms = math.sqrt((x[0] ** 2 + x[1] ** 2) / 2)
    assert oracle.logits(config, weights, [1])[0].tolist() == pytest.approx(
        [x[0] / rms, x[1] / rms], rel=1e-6
    )


def test_rotation_turns_pairs_by_position() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]] * 3)  # three positions, one head of two pairs
    angles = [[position, position / 100.0] for position in range(3)]  # theta 10000: 1 and 0.01
    config = replace(CONFIG, head_dim=4, rope_theta=1e4)
    for row, (fast, slow) in zip(oracle.rotate(config, x)[:, 0], angles, strict=True):
        want = [math.cos(fast), math.sin(fast), -2 * math.sin(slow), 2 * math.cos(slow)]
        assert row.tolist() == pytest.approx(want, abs=1e-6)
    halves = oracle.rotate(replace(config, rope_style="half"), x[..., [0, 2, 1, 3]])
    assert torch.equal(halves, oracle.rotate(config, x)[..., [0, 2, 1, 3]])


def test_scaled_frequencies_by_wavelength() -> None:
    config = replace(CONFIG, rope_scaling=RopeScaling(factor=8.0))
    for wavelength, want in [
        (100.0, 1.0),  # many turns in 8192 positions: kept
        (2047.0, 1.0),
        (8193.0, 1 / 8),  # less than one turn: slowed
        (1e6, 1 / 8),
        (4096.0, (1 - 1 / 3) / 8 + 1 / 3),  # two turns: a third of the way from 1 to 4
    ]:
        frequency = 2 * math.pi / wavelength
        assert oracle.scaled(config, frequency) / frequency == pytest.approx(want)


@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=8.0, original_context=16)])
def test_both_rope_styles_are_one_model(scaling: RopeScaling | None) -> None:
    config = replace(CONFIG, rope_scaling=scaling)
    weights = random_model(config)
    want = oracle.logits(config, weights, TOKENS)
    assert torch.allclose(oracle.logits(*in_half_style(config, weights), TOKENS), want, atol=1e-5)
    # Else the equality would say nothing about positions.
    wrong_style = oracle.logits(replace(config, rope_style="half"), weights, TOKENS)
    assert not torch.allclose(wrong_style, want, atol=1e-2)
    unscaled = oracle.logits(replace(config, rope_scaling=None), weights, TOKENS)
    assert torch.allclose(unscaled, want, atol=1e-2) == (scaling is None)


def test_grouped_kv_heads_are_repeated_kv_heads() -> None:
    grouped = replace(CONFIG, n_kv_heads=2, attention_bias=True)
    weights = random_model(grouped)
    repeated = {
        name: weight.unflatten(0, (2, 4)).repeat_interleave(4, dim=0).flatten(0, 1)
        if ".wk." in name or ".wv." in name
        else weight
        for name, weight in weights.items()
    }
    full = replace(grouped, n_kv_heads=8)
    want = oracle.logits(full, repeated, TOKENS)
    assert torch.allclose(oracle.logits(grouped, weights, TOKENS), want, atol=1e-4)


def test_no_token_sees_a_later_one() -> None:
    weights = random_model(CONFIG)
    whole = oracle.logits(CONFIG, weights, TOKENS)
    for n in range(1, len(TOKENS)):
        prefix = oracle.logits(CONFIG, weights, TOKENS[:n])
        assert torch.allclose(prefix, whole[:n], atol=1e-5)
    changed = oracle.logits(CONFIG, weights, [6, *TOKENS[1:]])
    assert not torch.isclose(changed, whole, atol=1e-2).all(-1).any()


def test_a_token_sees_its_window_and_no_further() -> None:
    """Two windows of 3 and 2 reach back 2 and 1 tokens, one after the other."""
    config = replace(CONFIG, n_layers=2, sliding_window=(3, 2))
    weights = random_model(config)
    whole = oracle.logits(config, weights, TOKENS)
    changed = oracle.logits(config, weights, [TOKENS[0], 50, *TOKENS[2:]])
    moved = ~torch.isclose(changed, whole, atol=1e-4).all(-1)
    assert moved.tolist() == [False, True, True, True, True, False, False, False]


@pytest.mark.parametrize("kind", ["attention.wq", "attention.wo", "feed_forward.w2"])
def test_biases_count(kind: str) -> None:
    config = replace(CONFIG, attention_bias=True, mlp_bias=True)
    weights = random_model(config)
    without = {**weights, f"layers.1.{kind}.bias": torch.zeros(32)}
    assert not torch.allclose(
        oracle.logits(config, weights, TOKENS), oracle.logits(config, without, TOKENS), atol=1e-2
    )


@pytest.mark.parametrize("seed", range(3))
def test_greedy_choices_of_a_random_model_survive_rounding(seed: int) -> None:
    weights = random_model(CONFIG, seed)
    token_ids = oracle.greedy(CONFIG, weights, TOKENS, 64)
    best = oracle.logits(CONFIG, weights, TOKENS + token_ids)[len(TOKENS) - 1 : -1].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4  # float32 rounds these logits to about 1e-5
    assert len(set(token_ids)) > 10
