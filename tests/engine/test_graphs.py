"""The decode step from fixed buffers gives what the ordinary step gives, whoever replays it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llama.config import EngineConfig
from llama.engine.graphs import DecodeGraphs, bucket_sizes, graphs_for
from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence
from llama.parallel.backend import BackendName
from llama.parallel.context import ParallelContext
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout

CONFIG = tiny_config(n_kv_heads=2)
GREEDY = DrawParams(temperature=0.0, top_p=1.0, top_k=0, seed=0, step=0)
TABLES = ((6, 2, 9), (4, 11), (1, 3, 5, 7), (8, 12), (0, 10, 13))
"""Of 4 slots a block."""
PROMPTS = ([1, 9, 33, 60, 2, 7, 7, 41], [1, 50, 8], list(range(2, 15)), [1], [5, 4, 3, 2, 1])


@pytest.fixture(scope="module")
def weights() -> Mapping[str, Tensor]:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory, weights: Mapping[str, Tensor]) -> str:
    return str(write_meta(tmp_path_factory.mktemp("graphs") / "ckpt", CONFIG, weights))


def planned(index: int, start: int, token_ids: list[int]) -> PlannedSequence:
    return PlannedSequence(
        seq_id=index,
        token_ids=tuple(token_ids),
        start=start,
        num_prompt_tokens=len(PROMPTS[index]),
        block_table=TABLES[index],
        sample=True,
        draw=GREEDY,
    )


def prompts() -> BatchPlan:
    return BatchPlan(tuple(planned(index, 0, prompt) for index, prompt in enumerate(PROMPTS)))


def decodes(indices: list[int], *, ages: Sequence[int] = (0,) * len(PROMPTS)) -> BatchPlan:
    """One token of each, `ages` tokens after its prompt."""
    return BatchPlan(
        tuple(planned(i, len(PROMPTS[i]) + ages[i], [10 * ages[i] + i + 1]) for i in indices)
    )


def run_again(step: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
    """Replays by running the same step over the same buffers, its result in a fixed place."""
    out = step()

    def replay() -> None:
        fresh = step()
        if out is not None and fresh is not None:
            out.copy_(fresh)

    return replay, out


STEPS = ([0, 1, 2], [0, 2], [0, 1, 2, 3, 4], [1], [3, 0], [4, 1])
"""Who decodes."""


def run_steps(context: ParallelContext, ckpt_dir: str) -> list[tuple[Tensor | None, Tensor | None]]:
    """For each step what the stage leaves, from fixed buffers and as usual."""
    engine = make_engine(context, ckpt_dir, attention="paged", num_blocks=14)
    runner, pp = engine.runner, context.pp
    graphs = DecodeGraphs(
        engine.stage,
        engine.cache,
        max_batch_size=5,
        dtype=torch.float32,
        device=context.device,
        capture=run_again,
    )
    runner.run(prompts())
    found, ages = [], [0] * len(PROMPTS)
    for indices in STEPS:
        plan = decodes(indices, ages=ages)
        for index in indices:
            ages[index] += 1
        assert graphs.takes(plan)
        out = graphs.run(plan, receive=lambda hidden: pp.recv(hidden, pp.rank - 1))
        if not context.is_last_stage and out is not None:
            pp.send(out.clone(), pp.rank + 1)
        kept = out.clone() if context.is_last_stage and out is not None else None
        found.append((kept, runner.logits(plan)))
    runner.flush()
    return found


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
def test_fixed_buffers_give_the_same_logits(tp: int, pp: int, ckpt_dir: str) -> None:
    """Of every batch size, in any order, with positions and blocks that change."""
    results: list[Any] = run_layout(run_steps, ckpt_dir, tp=tp, pp=pp)
    sampler = results[-tp]
    for replayed, usual in sampler:
        torch.testing.assert_close(replayed, usual, atol=1e-4, rtol=0)


def test_sizes_of_graphs() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(3) == (1, 2, 3)
    assert bucket_sizes(8) == (1, 2, 4, 8)
    assert bucket_sizes(32) == (1, 2, 4, 8, 16, 24, 32)


def test_steps_that_pass_through_the_host_are_not_captured(ckpt_dir: str) -> None:
    [captured] = run_layout(_captured, ckpt_dir, tp=1, pp=1)
    assert captured == {"none": True, "nccl": True, "gloo": False, "eager": False, "cpu": False}


def _captured(context: ParallelContext, ckpt_dir: str) -> dict[str, bool]:
    engine = make_engine(context, ckpt_dir, attention="paged", num_blocks=14)

    def is_captured(
        *, tp_backend: BackendName = "none", device: str = "cuda", eager: bool = False
    ) -> bool:
        found = graphs_for(
            engine.stage,
            engine.cache,
            EngineConfig(max_seq_len=64, enforce_eager=eager),
            dtype=torch.float32,
            device=torch.device(device),
            tp_backend=tp_backend,
        )
        return found is not None

    return {
        "none": is_captured(),
        "nccl": is_captured(tp_backend="nccl"),
        "gloo": is_captured(tp_backend="gloo"),
        "eager": is_captured(eager=True),
        "cpu": is_captured(device="cpu"),
    }


def test_only_steps_of_one_token_each_are_taken(ckpt_dir: str) -> None:
    [takes] = run_layout(_takes, ckpt_dir, tp=1, pp=1)
    assert takes == {"prompts": False, "none": False, "decodes": True, "too many": False}


def _takes(context: ParallelContext, ckpt_dir: str) -> dict[str, bool]:
    engine = make_engine(context, ckpt_dir, attention="paged", num_blocks=14)
    graphs = DecodeGraphs(
        engine.stage,
        engine.cache,
        max_batch_size=3,
        dtype=torch.float32,
        device=context.device,
        capture=run_again,
    )
    return {
        "prompts": graphs.takes(prompts()),
        "none": graphs.takes(BatchPlan(())),
        "decodes": graphs.takes(decodes([0, 1])),
        "too many": graphs.takes(decodes([0, 1, 2, 3])),
    }
