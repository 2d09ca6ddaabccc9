"""Attention on real ranks equals the oracle's, with bias, uneven heads and copied KV heads."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from llama.config import ModelConfig
from llama.layers.attention import ParallelAttention, Step
from llama.layers.parameter import materialize
from llama.ops.attention.sdpa import SdpaAttention
from llama.ops.rope import apply_rope, inverse_frequencies, rope_table
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.batches import NewTokens, make_batch
from tests.helpers.cases import run_cases
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.fill import fill
from tests.helpers.ranks import run_layout

CPU = torch.device("cpu")
BLOCK_SIZE, TABLE, N_SLOTS = 4, (3, 0, 2), 16
PREFIX = "layers.0.attention."


def attend(context: ParallelContext, config: ModelConfig) -> None:
    """One prompt of 10 tokens in two chunks over scattered blocks."""
    weights = random_model(config)
    layer = ParallelAttention(
        config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        bias=config.attention_bias,
        tp=context.tp,
        dtype=torch.float32,
    )
    materialize(layer, CPU)
    fill(layer, {name.removeprefix(PREFIX): weight for name, weight in weights.items()})
    x = torch.randn(10, config.dim, generator=torch.Generator().manual_seed(1))
    cos, sin = rope_table(inverse_frequencies(config.head_dim, config.rope_theta), 10)
    caches = torch.full((2, N_SLOTS, layer.wqkv.n_local_kv_heads, config.head_dim), torch.nan)
    found = []
    for chunk in (range(6), range(6, 10)):
        batch = make_batch([NewTokens(chunk, chunk.start, TABLE)], block_size=BLOCK_SIZE)
        rotate = partial(
            apply_rope, cos=cos[batch.positions], sin=sin[batch.positions], style=config.rope_style
        )
        step = Step(rotate, SdpaAttention(batch, dtype=torch.float32, window=None))
        found.append(layer(x[batch.positions], step, *caches))
    expected = oracle.attention(config, weights, PREFIX, x)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_interleaved(tp: int) -> None:
    configs = [
        tiny_config(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=8, attention_bias=bias)
        for n_heads, n_kv_heads in ((6, 2), (4, 1), (5, 5))
        for bias in (False, True)
    ]
    run_cases(attend, [(config,) for config in configs], tp=tp)


@pytest.mark.parametrize("tp", [1, 3])
def test_half(tp: int) -> None:
    run_layout(attend, tiny_config(n_heads=6, n_kv_heads=2, rope_style="half"), tp=tp)
