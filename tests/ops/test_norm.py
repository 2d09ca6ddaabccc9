"""Norms against their formulas, and where they round."""

from __future__ import annotations

import pytest
import torch

from llama.ops.norm import layer_norm, rms_norm


def formula(x: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def test_float32_is_the_formula() -> None:
    x, weight = torch.randn(5, 48), torch.randn(48)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), (formula(x, 1e-5) * weight).float())


def test_epsilon_counts_for_small_values() -> None:
    x, weight = torch.full((1, 8), 1e-3), torch.ones(8)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), torch.full((1, 8), 0.5**0.5))


def test_half_precision_rounds_before_the_weight() -> None:
    x, weight = torch.randn(7, 64).bfloat16(), torch.randn(64).bfloat16()
    found = rms_norm(x, weight, 1e-5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, formula(x, 1e-5).bfloat16() * weight)
    assert not torch.equal(found, (formula(x, 1e-5) * weight).bfloat16())


def test_large_half_precision_values_do_not_overflow() -> None:
    x = torch.full((1, 16), 60000.0).half()
    assert torch.equal(rms_norm(x, torch.ones(16).half(), 1e-5), torch.ones(1, 16).half())


def test_a_weight_of_another_width_is_an_error_with_and_without_kernels() -> None:
    for x in (torch.randn(2, 16), torch.randn(2, 16, requires_grad=True)):
        with pytest.raises(RuntimeError):
            rms_norm(x, torch.ones(8), 1e-5)


def layer_norm_formula(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double() + b.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layer_norm_is_the_formula_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(n, 64, generator=generator).to(dtype) for n in (7, 1, 1))
    x = x + 100  # the mean of 16-bit sums would be off by whole units
    found = layer_norm(x, w[0], b[0], 1e-5)
    assert found.dtype == dtype
    expected = layer_norm_formula(x, w[0], b[0])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=eps, atol=max(eps / 4, 1e-4))


def test_layer_norm_of_large_half_precision_values_does_not_overflow() -> None:
    x = torch.tensor([[60000.0, -60000.0] * 8]).half()
    found = layer_norm(x, torch.ones(16).half(), torch.zeros(16).half(), 1e-5)
    assert torch.equal(found, torch.tensor([[1.0, -1.0] * 8]).half())
