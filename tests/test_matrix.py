"""The matrix: an independent one-file model (helpers/oracle.py) against the engine, every layout.

One job per model and layout runs everything once on real ranks and returns plain lists; the
tests compare those with the oracle, and sampled texts with the one-process run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from llama.config import ModelConfig, RopeScaling
from llama.engine.sequence import SamplingParams
from llama.parallel.context import ParallelContext, single
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout

_GQA = ModelConfig(
    dim=64, n_layers=5, n_heads=8, n_kv_heads=2, head_dim=8, ffn_dim=200, vocab_size=104
)
MODELS = {
    "mha": replace(_GQA, n_kv_heads=8),
    "gqa": _GQA,
    "bias": replace(_GQA, attention_bias=True, mlp_bias=True),
    "scaled_rope": replace(_GQA, rope_theta=500000.0, rope_scaling=RopeScaling(factor=8.0)),
}
LAYOUTS = [(tp, pp) for tp, pp in product((1, 2, 3), (1, 2, 3)) if tp * pp <= 4]
LARGE_LAYOUTS = [
    *[(tp, pp) for tp, pp in product((1, 2, 3, 4), (1, 2, 3)) if 4 < tp * pp <= 8],
    *[(4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (1, 5)],
]
CASES = [
    *product(("gqa",), LAYOUTS),
    *[(model, (1, 1)) for model in ("bias", "mha", "scaled_rope")],
    *[("bias", (3, 1)), ("mha", (2, 2)), ("scaled_rope", (1, 3))],
]
N_GREEDY = 64
PROMPT = [1, 17, 42, 99, 3, 64, 8, 8, 23, 77, 5]
OTHERS = [[1 + (7 * i) % 100, *[(3 * i + 11 * j) % 101 for j in range(i)]] for i in range(16)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=N_GREEDY, ignore_eos=True)
SHORT = replace(GREEDY, max_tokens=16)
SCORED = replace(GREEDY, max_tokens=8, prompt_logprobs=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=50, seed=1234, max_tokens=16)


@cache
def tensors_of(model: str) -> dict[str, torch.Tensor]:
    return random_model(MODELS[model], seed=len(model))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for every model, each in two Meta files."""
    folders = {}
    for model, config in MODELS.items():
        folder = tmp_path_factory.mktemp(model)
        write_meta(folder, config, tensors_of(model), n_files=2)
        folders[model] = str(folder)
    return folders


@cache
def expected(model: str) -> dict[str, Any]:
    """What the oracle says."""
    config, tensors = MODELS[model], tensors_of(model)
    logits = oracle.logits(config, tensors, PROMPT)
    logprobs = torch.log_softmax(logits, dim=-1)
    return {
        "logits": logits,
        "greedy": oracle.greedy(config, tensors, PROMPT, N_GREEDY),
        "prompt_logprobs": [float(logprobs[i, t]) for i, t in enumerate(PROMPT[1:])],
    }


def job(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    """Everything the tests look at, from one rank's point of view."""
    found = crowded_job(context, ckpt_dir)
    whole = make_engine(context, ckpt_dir)
    chunked = make_engine(context, ckpt_dir, max_num_batched_tokens=5)
    one_by_one = make_engine(context, ckpt_dir, max_num_batched_tokens=1)
    found["alone"] = whole.generate([PROMPT], [SHORT])[0].token_ids
    found["sampled"] = whole.generate([PROMPT], [SAMPLED])[0].token_ids
    for name, engine in {"whole": whole, "chunked": chunked, "one by one": one_by_one}.items():
        scored = engine.generate([PROMPT], [SCORED])[0]
        found[name] = scored.token_ids
        found[f"prompt_logprobs, {name}"] = scored.prompt_logprobs
    return found


def crowded_job(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    """Logits in two calls, and the prompt, greedy and sampled, among others with too few blocks."""
    engine = make_engine(context, ckpt_dir, max_num_batched_tokens=24, num_blocks=64)
    half = len(PROMPT) // 2
    rows = torch.tensor([PROMPT[::-1], PROMPT])
    logits = [engine.forward_rows(rows[:, :half], 0), engine.forward_rows(rows[:, half:], half)]
    prompts = [*OTHERS[:8], PROMPT, *OTHERS[8:], PROMPT]
    crowd = engine.generate(prompts, [*[SHORT] * 8, GREEDY, *[SHORT] * 8, SAMPLED])
    return {
        "logits": torch.cat(logits, dim=1)[1].tolist(),
        "in a crowd": crowd[8].token_ids,
        "sampled in a crowd": crowd[17].token_ids,
    }


@cache
def sampled_in_one_process(ckpt_dir: str) -> list[int]:
    result = make_engine(single(), ckpt_dir).generate([PROMPT], [SAMPLED])[0]
    return list(result.token_ids)


def check(
    model: str,
    ckpt_dir: str,
    *,
    tp: int,
    pp: int,
    run: Callable[..., Any] = job,
    transport: str | None = None,
) -> None:
    want, sampled = expected(model), sampled_in_one_process(ckpt_dir)
    ranks = run_layout(run, ckpt_dir, tp=tp, pp=pp, deadline_s=300, transport=transport)
    for rank, got in enumerate(ranks):
        where = f"rank {rank} of tp {tp} x pp {pp}"
        logits = torch.tensor(got.pop("logits"))
        torch.testing.assert_close(logits, want["logits"], atol=1e-4, rtol=0, msg=where)
        assert len(got["in a crowd"]) == N_GREEDY
        for how, values in got.items():
            if how.startswith("prompt_logprobs"):
                assert values[0] is None
                close = pytest.approx(want["prompt_logprobs"], abs=1e-4)
                assert list(values[1:]) == close, f"{how}, {where}"
            elif how.startswith("sampled"):
                assert list(values) == sampled, f"{how}, {where}"
            else:
                assert list(values) == want["greedy"][: len(values)], f"{how}, {where}"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_equals_the_oracle(
    checkpoints: dict[str, str], model: str, layout: tuple[int, int]
) -> None:
    check(model, checkpoints[model], tp=layout[0], pp=layout[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "layout",
    [
        (2, 2) if layout == (2, 2) else pytest.param(layout, marks=pytest.mark.nightly)
        for layout in LAYOUTS
        if layout != (1, 1)
    ],
)
def test_every_layout_equals_the_oracle_over_gloo(
    checkpoints: dict[str, str], layout: tuple[int, int]
) -> None:
    tp, pp = layout
    check("gqa", checkpoints["gqa"], tp=tp, pp=pp, run=crowded_job, transport="gloo")


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", LARGE_LAYOUTS)
def test_every_large_layout_equals_the_oracle(
    checkpoints: dict[str, str], layout: tuple[int, int]
) -> None:
    check("gqa", checkpoints["gqa"], tp=layout[0], pp=layout[1], run=crowded_job)


def test_a_sampled_text_is_not_the_greedy_one(checkpoints: dict[str, str]) -> None:
    """Else the comparison of sampled texts above would compare nothing new."""
    assert sampled_in_one_process(checkpoints["gqa"]) != expected("gqa")["greedy"][:16]
