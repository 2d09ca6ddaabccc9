"""A runner does what the plan says and nothing else: no scheduler is behind these plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence
from llama.engine.runner import RunnerStats
from llama.parallel.context import ParallelContext
from tests.helpers import oracle
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout

CONFIG = tiny_config(n_kv_heads=2)
FIRST, SECOND = [1, 9, 33, 60, 2, 7, 7, 41], [1, 50, 8]
GREEDY = DrawParams(temperature=0.0, top_p=1.0, top_k=0, seed=0, step=0, n_logprobs=1)


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory, weights: Mapping[str, Tensor]) -> str:
    return str(write_meta(tmp_path_factory.mktemp("runner") / "ckpt", CONFIG, weights))


def part(
    tokens: list[int], start: int, stop: int, *, table: tuple[int, ...], scored: bool = False
) -> PlannedSequence:
    """Tokens `start`..`stop` - 1 of a prompt; the last one samples."""
    sample = stop == len(tokens)
    return PlannedSequence(
        seq_id=table[0],
        token_ids=tuple(tokens[start:stop]),
        start=start,
        num_prompt_tokens=len(tokens),
        block_table=table,
        sample=sample,
        draw=GREEDY if sample else None,
        targets=tuple(tokens[start + 1 : stop + 1]) if scored else (),
    )


A, B = (6, 2), (4,)
"""Block tables of 4 slots a block."""
PLANS = [
    BatchPlan((part(FIRST, 0, 3, table=A),)),
    BatchPlan((part(SECOND, 0, 3, table=B, scored=True), part(FIRST, 3, 4, table=A))),
    BatchPlan((part(FIRST, 4, 7, table=A),)),
    BatchPlan((part(FIRST, 7, 8, table=A),)),
    *[BatchPlan((part(SECOND, 0, 3, table=B),))] * 4,
]


def run_plans(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    """All plans in a row: a first stage is several ahead of the next."""
    runner = make_engine(context, ckpt_dir).runner
    assert runner.stats == RunnerStats()
    results = [runner.run(plan) for plan in PLANS]
    logits = runner.logits(PLANS[1])
    runner.flush()
    return {
        "results": results,
        "logits": logits,
        "samples": context.is_last_stage and context.tp.rank == 0,
        "counts": (runner.stats.n_plans, runner.stats.n_tokens),
        "busy": runner.stats.busy_s > 0,
    }


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)])
def test_only_the_sampling_rank_has_results(
    ckpt_dir: str, weights: Mapping[str, Tensor], tp: int, pp: int
) -> None:
    first, second = (oracle.logits(CONFIG, weights, tokens) for tokens in (FIRST, SECOND))
    ranks = run_layout(run_plans, ckpt_dir, tp=tp, pp=pp)
    assert sum(found["samples"] for found in ranks) == 1
    for found in ranks:
        assert found["busy"]
        assert found["counts"] == (len(PLANS), sum(plan.num_tokens for plan in PLANS))
        if not found["samples"]:
            assert found["results"] == [None] * len(PLANS) and found["logits"] is None
            continue
        drawn = [[s.token_id for s in result.sequences] for result in found["results"]]
        own, other = int(first[-1].argmax()), int(second[-1].argmax())
        assert drawn == [[-1], [other, -1], [-1], [own], *[[other]] * 4]
        logprobs = second.log_softmax(-1)
        scored, silent = found["results"][1].sequences
        assert scored.target_logprobs == pytest.approx(
            [float(logprobs[0, 50]), float(logprobs[1, 8])], abs=1e-4
        )
        assert scored.logprob.logprob == pytest.approx(float(logprobs[2, other]), abs=1e-4)
        assert silent.target_logprobs == ()
        expected = torch.cat([second, first[3:4]])
        assert found["logits"].dtype == torch.float32
        torch.testing.assert_close(found["logits"], expected, atol=1e-4, rtol=0)
