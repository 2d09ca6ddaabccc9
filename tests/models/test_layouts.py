"""Whole models on one process and on every layout of up to four ranks, against the oracle."""

from __future__ import annotations

import pytest
import torch

from llama.config import ModelConfig, RopeScaling
from llama.parallel.context import ParallelContext, single
from tests.helpers import oracle
from tests.helpers.batches import NewTokens, make_batch
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.ranks import run_layout
from tests.helpers.stages import make_cache, ready_stage, run_batch, run_in_steps

PLAIN = tiny_config()
UNEVEN = tiny_config(n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=200, vocab_size=101)
BIASED = tiny_config(n_heads=6, n_kv_heads=3, ffn_dim=50, attention_bias=True, mlp_bias=True)
SCALED = tiny_config(
    n_kv_heads=1, head_dim=16, rope_style="half", rope_scaling=RopeScaling(original_context=16)
)
LINEAR = tiny_config(rope_scaling=RopeScaling(factor=4.0, kind="linear"))
TIED = tiny_config(n_heads=6, n_kv_heads=2, vocab_size=101, tied_embeddings=True)
WINDOWED = tiny_config(sliding_window=(3, None))
ROLLING = tiny_config(sliding_window=(3, 6))
ALL = {
    "plain": PLAIN,
    "uneven": UNEVEN,
    "biased": BIASED,
    "scaled": SCALED,
    "linear": LINEAR,
    "tied": TIED,
    "windowed": WINDOWED,
    "rolling": ROLLING,
}

TOKEN_IDS = [list(range(3, 20)), [60] * 9, [7, 1, 33, 4, 5], [2, 44]]
CUTS = [
    [6, 9, 0, 0],  # a chunk, a whole prompt
    [12, 9, 5, 1],  # a chunk in the middle, two fresh prompts, one of them a single token
    [13, 9, 5, 2],  # decode
    [17, 9, 5, 2],
]


def equals_oracle(context: ParallelContext, config: ModelConfig, attention: str) -> bool:
    """Whether this rank had logits; they are the oracle's."""
    weights = random_model(config)
    stage = ready_stage(context, config, weights, attention=attention)
    found = run_in_steps(context, stage, TOKEN_IDS, CUTS)
    for rows, ids in zip(found or [], TOKEN_IDS, strict=found is not None):
        expected = oracle.logits(config, weights, ids)
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)
    return found is not None


@pytest.mark.parametrize("attention", ["naive", "sdpa"])
@pytest.mark.parametrize("name", ALL)
def test_one_process(name: str, attention: str) -> None:
    assert equals_oracle(single(), ALL[name], attention)


SMALL = [(2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (2, 2)]
CASES = [
    *((name, tp, pp) for name in ("uneven", "biased") for tp, pp in SMALL),
    ("rolling", 2, 2),
    *(("tied", tp, pp) for tp, pp in [(3, 1), (1, 2), (2, 2)]),
]
FOUR_RANKS = [
    pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case[1] * case[2] > 3
]


@pytest.mark.parametrize(
    ("name", "tp", "pp"), [case for case in CASES if case[1] * case[2] < 4] + FOUR_RANKS
)
def test_layout(name: str, tp: int, pp: int) -> None:
    had_logits = run_layout(equals_oracle, ALL[name], "sdpa", tp=tp, pp=pp)
    sampler = tp * (pp - 1)
    assert had_logits == [rank == sampler for rank in range(tp * pp)]


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(2, 3), (3, 2), (6, 1)])
def test_larger_layout(tp: int, pp: int) -> None:
    run_layout(equals_oracle, UNEVEN, "sdpa", tp=tp, pp=pp)


def test_token_by_token_in_one_batch() -> None:
    weights = random_model(UNEVEN)
    stage = ready_stage(single(), UNEVEN, weights)
    token_ids = [list(range(20)), list(range(50, 62)), [9, 9, 9]]
    cuts = [[min(step, len(ids)) for ids in token_ids] for step in range(1, 21)]
    found = run_in_steps(single(), stage, token_ids, cuts)
    assert found is not None
    for rows, ids in zip(found, token_ids, strict=True):
        torch.testing.assert_close(rows, oracle.logits(UNEVEN, weights, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_its_own_dtype(dtype: torch.dtype) -> None:
    weights = random_model(PLAIN)
    stage = ready_stage(single(), PLAIN, weights, dtype=dtype)
    batch = make_batch([NewTokens([3, 4, 5], 0, (2,))], block_size=4)
    with torch.inference_mode():
        hidden = stage(batch.token_ids, batch, make_cache(stage, num_blocks=3))
        logits = stage.logits(hidden, batch)
    assert hidden.dtype == dtype
    assert logits is not None and logits.dtype == torch.float32
    expected = oracle.logits(PLAIN, weights, [3, 4, 5])
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def no_rows_wanted(context: ParallelContext) -> tuple[int, ...] | None:
    stage = ready_stage(context, UNEVEN, random_model(UNEVEN))
    batch = make_batch([NewTokens([1, 2], 0, (0,))], block_size=4, logit_rows=[])
    logits = run_batch(context, stage, batch, make_cache(stage, num_blocks=1))
    return None if logits is None else tuple(logits.shape)


def test_no_wanted_rows_give_no_logits() -> None:
    assert run_layout(no_rows_wanted) == [(0, 101)]
    assert run_layout(no_rows_wanted, tp=2) == [(0, 101), None]
