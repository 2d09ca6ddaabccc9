"""Feed-forward layers on real ranks equal plain torch, with bias and columns that do not divide."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest
import torch
from torch.nn.functional import gelu, linear

from llama.layers.mlp import GeluMLP, SwiGLU
from llama.layers.parameter import materialize
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.cases import run_cases
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.fill import fill

PREFIX = "layers.0.feed_forward."


def feed_forward(context: ParallelContext, ffn_dim: int, bias: bool, columns: int) -> None:
    weights = random_model(tiny_config(ffn_dim=ffn_dim, mlp_bias=bias))
    layer = SwiGLU(32, ffn_dim, bias=bias, tp=context.tp, dtype=torch.float32)
    materialize(layer, torch.device("cpu"))
    fill(layer, {name.removeprefix(PREFIX): weight for name, weight in weights.items()})
    if context.tp.rank == context.tp.size - 1:
        assert layer.w2.weight.shape == (32, columns)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected = oracle.feed_forward(weights, PREFIX, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tp", "columns"),
    [
        (1, {200: 200}),
        (2, {200: 100, 384: 128}),  # 384 in units of 128, so the first rank holds 256
        (3, {200: 66, 384: 128}),
        (4, {200: 50}),
    ],
)
def test_swiglu(tp: int, columns: dict[int, int]) -> None:
    cases = product(columns.items(), (False, True))
    run_cases(feed_forward, [(ffn_dim, bias, own) for (ffn_dim, own), bias in cases], tp=tp)


def gelu_mlp(context: ParallelContext, approximate: Literal["none", "tanh"], columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w1.weight": (50, 32), "w1.bias": (50,), "w2.weight": (32, 50), "w2.bias": (32,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    layer = GeluMLP(32, 50, approximate=approximate, bias=True, tp=context.tp, dtype=torch.float32)
    materialize(layer, torch.device("cpu"))
    fill(layer, weights)
    if context.tp.rank == context.tp.size - 1:
        assert layer.w1.bias is not None and layer.w1.bias.shape == (columns,)
        assert layer.w2.weight.shape == (32, columns)
    x = torch.randn(5, 32, generator=generator)
    hidden = gelu(linear(x, weights["w1.weight"], weights["w1.bias"]), approximate=approximate)
    expected = linear(hidden, weights["w2.weight"], weights["w2.bias"])
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("tp", "columns"), [(1, 50), (3, 16)])
def test_gelu_mlp(tp: int, columns: int) -> None:
    run_cases(gelu_mlp, [("none", columns), ("tanh", columns)], tp=tp)
