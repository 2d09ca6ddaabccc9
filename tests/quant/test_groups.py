"""Quantised weights are as near as the format allows, and depend on their group alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from llama.errors import UsageError
from llama.quant.groups import dequantize, quantize, rows_of_a_block

FORMATS = list(itertools.product((8, 4), (32, 64, 128)))


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_errs_by_at_most_half_a_step(bits: int, group_size: int) -> None:
    torch.manual_seed(group_size)
    weight = torch.randn(9, 256)
    values, scales = quantize(weight, bits=bits, group_size=group_size)
    got = dequantize(values, scales, bits=bits, group_size=group_size, dtype=torch.float32)
    steps = scales.float().abs().repeat_interleave(group_size, dim=1)
    # In 4 bits the side without -8 may end a whole step short; the rest is bfloat16's rounding.
    bound = 0.5 if bits == 8 else 1.0
    errors = (got - weight).abs() / steps
    assert errors.max() <= bound + 0.02
    assert (errors <= 0.5 + 1e-3).float().mean() > 0.95


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_what_the_format_can_say_comes_back_exactly(bits: int, group_size: int) -> None:
    torch.manual_seed(group_size)
    end = 127 if bits == 8 else 8
    integers = torch.randint(-end, end, (5, 256)).float()
    integers[:, ::group_size] = -end
    weight = integers * 2.0 ** torch.randint(-100, 100, (5, 1))
    values, scales = quantize(weight, bits=bits, group_size=group_size)
    got = dequantize(values, scales, bits=bits, group_size=group_size, dtype=torch.float32)
    assert torch.equal(got, weight)


def test_two_values_share_a_byte_sixteen_columns_apart() -> None:
    weight = torch.cat([torch.arange(-8.0, 8.0), torch.arange(7.0, -9.0, -1.0)]).view(1, 32)
    values, scales = quantize(weight, bits=4, group_size=32)
    assert scales.tolist() == [[1.0]]
    assert values[0].tolist() == [low | (15 - low) << 4 for low in range(16)]


def test_ties_go_to_the_even_value() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :5] = torch.tensor([127.0, 0.5, 1.5, -0.5, -2.5])
    values, _ = quantize(weight, bits=8, group_size=32)
    assert values[0, :5].tolist() == [127, 0, 2, 0, -2]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_group_depends_on_its_own_weights_alone(bits: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(rows_of_a_block(256) + 3, 256)
    values, scales = quantize(weight, bits=bits, group_size=64)
    some, some_scales = quantize(weight[-2:, 64:192], bits=bits, group_size=64)
    assert torch.equal(values[-2:].unflatten(1, (4, -1))[:, 1:3].flatten(1), some)
    assert torch.equal(scales[-2:, 1:3], some_scales)


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros_and_what_is_not_finite_spoils_its_group(bits: int) -> None:
    weight = torch.zeros(1, 128)
    weight[0, 40], weight[0, 70] = float("nan"), float("inf")
    values, scales = quantize(weight, bits=bits, group_size=32)
    got = dequantize(values, scales, bits=bits, group_size=32, dtype=torch.float32)
    assert torch.equal(got[0, :32], torch.zeros(32)) and torch.equal(got[0, 96:], torch.zeros(32))
    assert got[0, 32:96].isnan().all()


@pytest.mark.parametrize(
    ("bits", "group_size", "message"),
    [
        (5, 32, "5 bits a weight are not known; use 4 or 8"),
        (8, 0, "a group of 0 columns is not known"),
        (8, 48, "a group of 48 columns is not known; use 32, 64 or 128"),
        (4, 128, "96 columns are not a multiple of the group size 128"),
    ],
)
def test_formats_that_are_not_known_are_refused(bits: int, group_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(torch.zeros(1, 96), bits=bits, group_size=group_size)
