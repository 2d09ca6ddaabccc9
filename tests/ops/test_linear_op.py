"""The dense product against torch's in float64: both ways, all dtypes, sizes that fit nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama.native import library, why_not
from llama.ops import linear as op
from llama.ops.linear import linear

needs_library = pytest.mark.skipif(library("math") is None, reason=why_not("math"))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (M, K): one of each, tails of K of every vector, rows that end a tile, a block or nothing
SHAPES = [(1, 1), (3, 7), (5, 8), (13, 33), (97, 40), (192, 257), (101, 520)]


def product(n: int, m: int, k: int, dtype: torch.dtype, *, has_bias: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * 1009 + m * 31 + k)
    x = torch.randn(n, k, generator=generator).to(dtype)
    weight = torch.randn(m, k, generator=generator).to(dtype)
    bias = torch.randn(m, generator=generator).to(dtype) if has_bias else torch.empty(0)
    return x, weight, bias


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    out = linear(x, weight, bias)
    want = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert out.dtype == x.dtype
    assert out.shape == want.shape
    # sums of K products of about 1, rounded once to the dtype of x
    step = torch.finfo(x.dtype).eps * want.abs() + 1e-6 * max(1, x.shape[-1])
    assert ((out.double() - want).abs() <= step).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_is_that_of_torch(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "_has_bfloat16_products", lambda: False)
    for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 31, 32, 33, 48, 61]:
        x, weight, bias = product(n, *shape, dtype, has_bias=n % 2 == 1)
        check(x, weight, bias if n % 2 else None)


def test_more_rows_than_are_packed_at_once() -> None:
    for n in (1024, 1025, 2100):
        x, weight, bias = product(n, 29, 33, torch.float32, has_bias=True)
        check(x, weight, bias)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_the_threads(threads: int) -> None:
    before = torch.get_num_threads()
    for n in (1, 8, 20, 600):
        x, weight, _ = product(n, 130, 300, torch.float32, has_bias=False)
        torch.set_num_threads(1)
        alone = linear(x, weight)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(linear(x, weight), alone)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_the_library_torch_gives_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "kernels_for", lambda _x: None)
    monkeypatch.setattr(op, "_has_bfloat16_products", lambda: False)
    monkeypatch.setattr(op, "_BLOCK_ELEMENTS", 64)
    for n in (1, 40):
        x, weight, bias = product(n, 13, 33, dtype, has_bias=True)
        check(x, weight, bias)
        check(x, weight, None)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float32_meets_a_16_bit_weight(dtype: torch.dtype) -> None:
    for n in (1, 12, 40):
        x, weight, bias = product(n, 29, 65, dtype, has_bias=True)
        check(x.float(), weight, bias)


@needs_library
@pytest.mark.parametrize("n", [1, 6, 20, 40])
def test_nan_and_infinity_reach_the_rows_they_belong_to(n: int) -> None:
    x, weight, _ = product(n, 14, 19, torch.float32, has_bias=False)
    x[n - 1, 18] = float("inf")
    weight[3, 2] = float("nan")
    weight[5, 18] = 0.0
    out = linear(x, weight)
    assert out[:, 3].isnan().all()
    assert out[n - 1, 5].isnan()
    assert out[n - 1].isfinite().sum() == 0
    others = out[: n - 1][:, torch.arange(14) != 3]
    assert others.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (2, 5, 0), (40, 5, 0)], ids=str)
def test_empty_tensors(shape: tuple[int, int, int]) -> None:
    n, m, k = shape
    x, weight, bias = torch.ones(n, k), torch.ones(m, k), torch.full((m,), 2.0)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_any_strides_and_leading_dims() -> None:
    x, weight, bias = product(12, 6, 16, torch.float32, has_bias=True)
    wide = torch.stack((x, x), dim=-1)[..., 0]
    torch.testing.assert_close(linear(wide, weight, bias), F.linear(x, weight, bias))
    transposed = weight.t().contiguous().t()
    torch.testing.assert_close(linear(x, transposed, bias), F.linear(x, weight, bias))
    out = linear(x.view(3, 4, 16), weight, bias)
    torch.testing.assert_close(out.view(12, 6), F.linear(x, weight, bias))


def test_shapes_that_do_not_fit_are_torchs_error() -> None:
    with pytest.raises(RuntimeError):
        linear(torch.ones(2, 4), torch.ones(3, 5))
    with pytest.raises(RuntimeError):
        linear(torch.ones(2, 4), torch.ones(3, 4), torch.ones(4))


def test_gradients_take_the_path_of_torch() -> None:
    x, weight = torch.ones(2, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None and x.grad.unique().tolist() == [3.0]
    assert weight.grad is not None and weight.grad.unique().tolist() == [2.0]
