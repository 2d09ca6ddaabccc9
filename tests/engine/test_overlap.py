"""Stages of a real pipeline have work at the same time: what left before what came back.

Nothing is timed. Which plans the scheduler makes is in test_scheduler_pipeline.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.engine.engine import Engine
from llama.engine.plan import BatchPlan, StepResult
from llama.engine.sequence import SamplingParams, Sequence
from llama.engine.shares import MIN_CHUNK_TOKENS
from llama.parallel.context import ParallelContext, single
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout

N_PROMPT_TOKENS = 5 * MIN_CHUNK_TOKENS // 2
N_NEW_TOKENS = 12
PROMPTS = [[1 + (7 * i + 3 * j) % 60 for j in range(N_PROMPT_TOKENS)] for i in range(8)]
PARAMS = SamplingParams(temperature=0.0, max_tokens=N_NEW_TOKENS, ignore_eos=True)

Step = tuple[int, int]
"""Sequences and tokens of a plan."""


class Watched:
    """An engine's steps on this rank, and on the leader what was out when a result was taken in."""

    def __init__(self, engine: Engine) -> None:
        self.steps: list[Step] = []
        self.out: list[tuple[int, int]] = []
        self._engine = engine
        self._run, self._update = engine.runner.run, engine.scheduler.update
        engine.runner.run = self.run  # type: ignore[method-assign]
        engine.scheduler.update = self.update  # type: ignore[method-assign]

    def run(self, plan: BatchPlan) -> StepResult | None:
        self.steps.append((len(plan.sequences), plan.num_tokens))
        return self._run(plan)

    def update(self, plan: BatchPlan, result: StepResult) -> list[Sequence]:
        scheduler = self._engine.scheduler
        self.out.append((scheduler.in_flight, len(scheduler.running)))
        return self._update(plan, result)


def watched_job(context: ParallelContext, ckpt_dir: str) -> dict[str, Any]:
    engine = make_engine(context, ckpt_dir, max_seq_len=N_PROMPT_TOKENS + N_NEW_TOKENS)
    watched = Watched(engine)
    found = engine.generate(PROMPTS, [PARAMS] * len(PROMPTS))
    return {
        "ids": [result.token_ids for result in found],
        "steps": watched.steps,
        "out": watched.out,
    }


@pytest.mark.nightly
@pytest.mark.parametrize("pp", [2, 4])
def test_every_stage_has_a_plan_while_there_is_work(tmp_path: Path, pp: int) -> None:
    config = tiny_config(n_layers=4, n_kv_heads=2)
    ckpt_dir = str(write_meta(tmp_path / "ckpt", config, random_model(config)))
    alone = watched_job(single(), ckpt_dir)
    ranks = run_layout(watched_job, ckpt_dir, pp=pp)
    assert all(found["ids"] == alone["ids"] for found in ranks)
    steps, out = ranks[0]["steps"], ranks[0]["out"]
    assert all(found["steps"] == steps for found in ranks)
    assert sum(n_tokens for _, n_tokens in steps) == sum(n for _, n in alone["steps"])
    # taken in only when all others have left: each stage had one
    assert all(in_flight == pp for in_flight, running in out if running >= 2 * pp)
    n_prompt_steps = len(PROMPTS) * N_PROMPT_TOKENS // MIN_CHUNK_TOKENS
    shares = [n_tokens for _, n_tokens in steps[: n_prompt_steps - 1]]
    most_decodes = -(-len(PROMPTS) // pp)
    assert all(0 <= n - MIN_CHUNK_TOKENS <= most_decodes for n in shares), shares
    assert max(n_sequences for n_sequences, _ in steps) <= most_decodes + 2
