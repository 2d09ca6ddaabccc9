"""SwiGLU on real ranks equals the oracle's, with bias and columns that do not divide."""

from __future__ import annotations

import pytest
import torch

from llama.layers.mlp import SwiGLU
from llama.layers.parameter import materialize
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.fill import fill
from tests.helpers.ranks import run_layout

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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("ffn_dim", "tp", "columns"),
    [
        (200, 1, 200),
        (200, 2, 100),
        (200, 3, 66),
        (200, 4, 50),
        (384, 2, 128),  # in units of 128, so the first rank holds 256
        (384, 3, 128),
    ],
)
def test_swiglu(ffn_dim: int, tp: int, columns: int, bias: bool) -> None:
    run_layout(feed_forward, ffn_dim, bias, columns, tp=tp)
