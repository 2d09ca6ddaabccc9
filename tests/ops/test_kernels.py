"""Native kernels against the paths of torch beside them, on odd sizes and every dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama.ops import activation, norm, rope, sampling
from llama.ops.kernels import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler here")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """Calls a function with the kernels, and without."""

    def run(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        native = function()
        for module in (activation, norm, rope, sampling):
            monkeypatch.setattr(module, "kernels_for", lambda _: None)
        return native, function()

    return run


def close(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    native, plain = pair
    assert native.dtype == plain.dtype and native.shape == plain.shape
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(native, plain, rtol=limit, atol=limit, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 32), (5, 100), (0, 8), (70, 513)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, both: Callable[..., object]) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    close(both(lambda: norm.rms_norm(x, weight, 1e-5)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 64), (0, 8), (70, 1026)])
def test_silu_and_mul(
    shape: tuple[int, int], dtype: torch.dtype, both: Callable[..., object]
) -> None:
    x = (torch.randn(shape) * 5).to(dtype)
    close(both(lambda: activation.silu_and_mul(x)), dtype)


def test_silu_of_what_is_large_or_not_finite(both: Callable[..., object]) -> None:
    gate = [0.0, -0.0, 80.0, -80.0, 89.0, -89.0, 3e38, -3e38, torch.inf, torch.nan, 1.0]
    x = torch.cat([torch.tensor(gate), torch.full((len(gate),), 0.5)])[None]
    close(both(lambda: activation.silu_and_mul(x)), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize(("n_tokens", "n_heads", "head_dim"), [(1, 3, 64), (5, 1, 6), (700, 2, 32)])
def test_rope_turns_part_of_a_row_and_leaves_the_rest(
    n_tokens: int,
    n_heads: int,
    head_dim: int,
    style: rope.RopeStyle,
    dtype: torch.dtype,
    both: Callable[..., object],
) -> None:
    x = torch.randn(n_tokens, n_heads + 2, head_dim).to(dtype)
    cos, sin = torch.rand(2, n_tokens, head_dim // 2)

    def turned() -> Tensor:
        whole = x.clone()
        done = rope.rotate(whole[:, :n_heads], cos, sin, style=style)
        assert torch.equal(whole[:, n_heads:], x[:, n_heads:])
        return done

    close(both(turned), dtype)


@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("vocab_size", [1, 8, 13, 1000])
def test_best_token_of_rows_that_are_part_of_wider_ones(
    vocab_size: int, bad: float | None, both: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    logits = torch.randn(4, vocab_size + 3).bfloat16().float()[:, :vocab_size]
    logits[2, vocab_size // 2] = 9 if bad is None else bad
    (ids, finite), (plain_ids, plain_finite) = both(lambda: sampling.best_token(logits))
    assert finite.tolist() == plain_finite.tolist() == [True, True, bad is None, True]
    assert ids[finite].tolist() == plain_ids[finite].tolist()


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 40.0])
@pytest.mark.parametrize("vocab_size", [1, 5, 300, 4099])
def test_draws(vocab_size: int, scale: float, both: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Many rows, each with its own mixture of rules; equal logits among them."""
    torch.manual_seed(vocab_size)
    n_rows = 64
    logits = (torch.randn(n_rows, vocab_size) * scale).bfloat16().float()
    draws = sampling.Draws(
        temperature=torch.rand(n_rows, dtype=torch.float64) + 0.1,
        top_p=torch.where(torch.rand(n_rows) < 0.5, 1.0, torch.rand(n_rows)).double(),
        top_k=torch.randint(0, 2 * vocab_size, (n_rows,)) * torch.randint(0, 2, (n_rows,)),
        uniform=torch.rand(n_rows, dtype=torch.float64),
    )
    native, plain = both(lambda: sampling.sample(logits, draws))
    assert native.tolist() == plain.tolist()


def test_a_draw_at_a_temperature_near_nothing_is_the_best_token() -> None:
    column = torch.ones(1, dtype=torch.float64)
    draws = sampling.Draws(column * 1e-300, column, column.long() * 0, column * 0.999)
    assert sampling.sample(torch.tensor([[1.0, 3.0, 2.0]]), draws).tolist() == [1]
