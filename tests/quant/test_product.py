"""Kernels and torch path give the product with the dequantised weight."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama.errors import UsageError
from llama.quant import product
from llama.quant.groups import dequantize, quantize
from llama.quant.kernels import kernels
from llama.quant.product import quantized_linear

FORMATS = list(itertools.product((8, 4), (32, 64, 128)))
ROWS = (0, 1, 2, 3, 4, 5, 6, 9, 32, 33, 40)

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no compiler")


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "kernels_for", lambda *_, **__: None)


def rounded_x(x: Tensor, group_size: int) -> Tensor:
    """x quantised and back in double precision: what `dynamic` means."""
    grouped = x.double().unflatten(1, (-1, group_size))
    scales = grouped.abs().amax(dim=-1, keepdim=True) / 127
    return (torch.round(grouped / scales) * scales).flatten(1)


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_is_the_product_with_the_dequantised_weight(
    bits: int, group_size: int, dynamic: bool, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_native:
        without_kernels(monkeypatch)
    torch.manual_seed(bits * group_size)
    for n_outputs, n_inputs in ((1, 128), (4, 128), (7, 384), (39, 256)):
        values, scales = quantize(
            torch.randn(n_outputs, n_inputs), bits=bits, group_size=group_size
        )
        bias = torch.randn(n_outputs)
        weight = dequantize(values, scales, bits=bits, group_size=group_size, dtype=torch.float64)
        for n_rows in ROWS:
            x = torch.randn(n_rows, n_inputs)
            got = quantized_linear(
                x, values, scales, bias, bits=bits, group_size=group_size, dynamic=dynamic
            )
            inputs = rounded_x(x, group_size) if dynamic else x.double()
            wanted = F.linear(inputs, weight, bias.double()).float()
            torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-4)


@needs_kernels
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_values_at_the_ends_of_the_range_do_not_overflow(bits: int, dynamic: bool) -> None:
    weight = torch.ones(3, 256)
    weight[1], weight[2, ::2] = -1.0, -1.0
    values, scales = quantize(weight, bits=bits, group_size=128)
    exact = dequantize(values, scales, bits=bits, group_size=128, dtype=torch.float32)
    for x in (torch.ones(2, 256), -torch.ones(2, 256), exact[2].expand(2, -1).contiguous()):
        got = quantized_linear(x, values, scales, bits=bits, group_size=128, dynamic=dynamic)
        torch.testing.assert_close(got, F.linear(x, exact), rtol=1e-2, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("n_rows", [1, 3, 40])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_not_finite_stays_in_its_row(
    bits: int, dynamic: bool, n_rows: int, poison: float
) -> None:
    values, scales = quantize(torch.randn(5, 128), bits=bits, group_size=64)
    x = torch.randn(n_rows, 128)
    x[-1, 70] = poison
    got = quantized_linear(x, values, scales, bits=bits, group_size=64, dynamic=dynamic)
    assert not got[-1].isfinite().any()
    assert got[:-1].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_weight_that_is_not_finite_spoils_its_own_output(dynamic: bool) -> None:
    weight = torch.randn(5, 128)
    weight[2, 3] = float("nan")
    values, scales = quantize(weight, bits=8, group_size=64)
    got = quantized_linear(
        torch.randn(2, 128), values, scales, bits=8, group_size=64, dynamic=dynamic
    )
    assert got.isnan().any(dim=0).tolist() == [False, False, True, False, False]


@needs_kernels
@pytest.mark.parametrize("dynamic", [False, True])
def test_sums_do_not_depend_on_threads(dynamic: bool) -> None:
    torch.manual_seed(0)
    values, scales = quantize(torch.randn(37, 256), bits=8, group_size=64)
    x = torch.randn(1, 256)
    threads = torch.get_num_threads()
    try:
        got = []
        for count in (1, 3):
            torch.set_num_threads(count)
            got.append(quantized_linear(x, values, scales, bits=8, group_size=64, dynamic=dynamic))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_dtype_and_leading_dims(dtype: torch.dtype) -> None:
    values, scales = quantize(torch.randn(6, 64), bits=4, group_size=32)
    x = torch.randn(2, 3, 64).to(dtype)
    got = quantized_linear(x, values, scales, bits=4, group_size=32, dynamic=True)
    assert (got.shape, got.dtype) == ((2, 3, 6), dtype)


def test_strided_weights_and_inputs_are_right() -> None:
    values, scales = quantize(torch.randn(12, 128), bits=8, group_size=64)
    x = torch.randn(128, 3).T
    got = quantized_linear(x, values[::2], scales[::2], bits=8, group_size=64, dynamic=False)
    weight = dequantize(values, scales, bits=8, group_size=64, dtype=torch.float32)
    torch.testing.assert_close(got, F.linear(x, weight[::2]))


def test_a_bias_of_another_length_is_torchs_error() -> None:
    values, scales = quantize(torch.randn(12, 64), bits=8, group_size=64)
    x, bias = torch.randn(1, 64), torch.ones(5)
    with pytest.raises(RuntimeError):
        quantized_linear(x, values, scales, bias, bits=8, group_size=64, dynamic=False)


def test_columns_that_are_no_groups_are_refused() -> None:
    values, scales = quantize(torch.randn(2, 96), bits=8, group_size=32)
    with pytest.raises(UsageError, match="96 columns are not a multiple of the group size 64"):
        quantized_linear(torch.randn(1, 96), values, scales, bits=8, group_size=64, dynamic=False)
