"""Rotary embedding against the oracle, and what must hold whatever the angles are."""

from __future__ import annotations

import math

import pytest
import torch

from llama.config import RopeScaling
from llama.ops.rope import RopeStyle, apply_rope, inverse_frequencies, rope_table
from tests.helpers import oracle
from tests.helpers.checkpoints import tiny_config

STYLES: tuple[RopeStyle, ...] = ("interleaved", "half")
LLAMA_3_1 = RopeScaling()


def table(head_dim: int, n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_table(inverse_frequencies(head_dim, 10000.0), n_positions)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling(original_context=16), RopeScaling(factor=4.0, kind="linear")],
)
def test_rotation_is_that_of_the_oracle(style: RopeStyle, scaling: RopeScaling | None) -> None:
    config = tiny_config(head_dim=16, rope_style=style, rope_scaling=scaling)
    x = torch.randn(50, 3, 16)
    cos, sin = rope_table(inverse_frequencies(16, config.rope_theta, scaling), 50)
    torch.testing.assert_close(
        apply_rope(x, cos, sin, style=style), oracle.rotate(config, x), rtol=1e-5, atol=1e-5
    )


def test_angles_are_products_in_float32() -> None:
    frequencies = inverse_frequencies(128, 500000.0)
    cos, sin = rope_table(frequencies, 5000)
    angle = torch.tensor(4321.0) * frequencies[7]
    assert (cos[4321, 7], sin[4321, 7]) == (angle.cos(), angle.sin())
    assert frequencies[7] == pytest.approx(500000.0 ** (-14 / 128), rel=1e-6)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_keeps_short_waves_and_divides_long_ones(factor: float) -> None:
    scaling = RopeScaling(factor=factor)
    plain = inverse_frequencies(128, 500000.0)
    scaled = inverse_frequencies(128, 500000.0, scaling)
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    assert torch.equal(scaled[short], plain[short])
    assert torch.equal(scaled[long], plain[long] / factor)
    between = ~(short | long)
    assert between.sum() == 6
    assert ((scaled < plain) & (scaled > plain / factor))[between].all()


def test_linear_scaling_is_position_interpolation() -> None:
    scaling = RopeScaling(factor=4.0, kind="linear")
    slow = rope_table(inverse_frequencies(64, 10000.0, scaling), 33)
    plain = rope_table(inverse_frequencies(64, 10000.0), 9)
    for stretched, table in zip(slow, plain, strict=True):
        torch.testing.assert_close(stretched[::4], table, rtol=1e-6, atol=1e-6)


def test_scaling_blends_in_between() -> None:
    frequency = torch.tensor(
        [2 * math.pi / 4096]
    )  # 2 turns in 8192: a third of the way from 1 to 4
    scaled = oracle.scaled(tiny_config(rope_scaling=LLAMA_3_1), float(frequency))
    assert scaled == pytest.approx(float(frequency) * (2 / 3 / 8 + 1 / 3))
    index = 34
    plain = inverse_frequencies(128, 500000.0)[index]
    assert inverse_frequencies(128, 500000.0, LLAMA_3_1)[index] == pytest.approx(
        oracle.scaled(tiny_config(rope_scaling=LLAMA_3_1), float(plain)), rel=1e-5
    )


@pytest.mark.parametrize("style", STYLES)
def test_scores_depend_on_distance_only(style: RopeStyle) -> None:
    cos, sin = table(8, 40)
    torch.manual_seed(0)  # of other pairs the scores may be alike by chance
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(q_position: int, k_position: int) -> torch.Tensor:
        turned = [
            apply_rope(x, cos[[position]], sin[[position]], style=style)
            for x, position in ((q, q_position), (k, k_position))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(35, 30), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(score(9, 4), score(35, 31), rtol=1e-2)


def test_styles_differ_by_the_order_of_the_rows() -> None:
    cos, sin = table(8, 5)
    x = torch.randn(5, 2, 8)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    interleaved = apply_rope(x, cos, sin, style="interleaved")
    torch.testing.assert_close(
        apply_rope(x[..., order], cos, sin, style="half"), interleaved[..., order]
    )


@pytest.mark.parametrize("style", STYLES)
def test_half_precision_is_turned_in_float32(style: RopeStyle) -> None:
    cos, sin = table(64, 30)
    x = torch.randn(30, 2, 64).bfloat16()
    turned = apply_rope(x, cos, sin, style=style)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), cos, sin, style=style).bfloat16())


@pytest.mark.parametrize("style", STYLES)
def test_a_slice_of_a_wider_tensor_is_turned_alike(style: RopeStyle) -> None:
    cos, sin = table(8, 6)
    wide = torch.randn(6, 5, 8)
    turned = apply_rope(wide[:, 1:4], cos, sin, style=style)
    assert torch.equal(turned, apply_rope(wide[:, 1:4].clone(), cos, sin, style=style))
