"""RMSNorm against its formula, and where it rounds."""

from __future__ import annotations

import torch

from llama.ops.norm import rms_norm


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
