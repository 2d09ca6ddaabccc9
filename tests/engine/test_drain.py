"""SIGTERM during a call: what runs is finished, what waits is aborted, the next call is the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama.config import EngineConfig, ParallelConfig
from llama.engine.engine import Engine
from llama.engine.scheduler import Scheduler
from llama.engine.sequence import SamplingParams
from llama.engine.sequence import Sequence as Request
from llama.llm import LLM
from llama.parallel.context import ParallelContext, initialize
from tests.helpers import llms
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import RankDied, RankInfo, run_ranks

CONFIG = tiny_config(n_kv_heads=2)
PROMPTS = [[1, *range(n, 2 * n)] for n in range(2, 7)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_meta(tmp_path_factory.mktemp("drain") / "ckpt", CONFIG, random_model(CONFIG)))


def launched(info: RankInfo, *, tp: int, pp: int) -> ParallelContext:
    """A context as a launcher's rank has it."""
    places = {"RANK": info.rank, "LOCAL_RANK": info.rank, "WORLD_SIZE": info.world_size}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the group is there already
    info.init_process_group()
    return initialize(ParallelConfig(tp_size=tp, pp_size=pp))


def on_forward(engine: Engine, number: int, *, n_signals: int = 1) -> None:
    """Have SIGTERM come to this rank in the middle of its forward pass number `number`."""
    calls: list[int] = []

    def send(*_: Any) -> None:
        calls.append(1)
        for _ in range(n_signals if len(calls) == number else 0):
            os.kill(os.getpid(), signal.SIGTERM)

    next(iter(engine.stage.layers.values())).register_forward_pre_hook(send)


def status(context: ParallelContext) -> object:
    """The exit status that the next call on all ranks comes to."""
    try:
        context.agree({"seed": 1})
    except SystemExit as leaving:
        return leaving.code
    return None


def drained_job(info: RankInfo, ckpt_dir: str, tp: int, pp: int, who: list[int]) -> dict[str, Any]:
    context = launched(info, tp=tp, pp=pp)
    engine = make_engine(context, ckpt_dir, max_batch_size=2)
    whole = [result.token_ids for result in engine.generate(PROMPTS, [GREEDY] * len(PROMPTS))]
    before = status(context)
    if info.rank in who:
        on_forward(engine, 4)
    results = engine.generate(PROMPTS, [GREEDY] * len(PROMPTS))
    return {
        "whole": whole,
        "results": [(result.token_ids, result.finish_reason) for result in results],
        "free": engine.scheduler.num_free_blocks == engine.cache.num_blocks,
        "handler": signal.getsignal(signal.SIGTERM),
        "status": [before, status(context)],
    }


@pytest.mark.parametrize(("tp", "pp", "dp"), [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_what_runs_is_finished_and_the_next_call_ends_all_ranks(
    ckpt_dir: str, tp: int, pp: int, dp: int
) -> None:
    found = run_ranks(drained_job, tp * pp * dp, ckpt_dir, tp, pp, [0, 1])
    whole = found[0]["whole"]
    n_running = 2 * dp
    expected = [(ids, "length") for ids in whole[:n_running]]
    expected += [((), "abort") for _ in whole[n_running:]]
    for rank in found:
        assert rank["results"] == expected
        assert rank["free"] and rank["handler"] is signal.SIG_DFL
        assert rank["status"] == [None, 143]


def test_one_rank_that_is_asked_takes_the_others_along(ckpt_dir: str) -> None:
    """Its leader was not asked, so this call is served in full."""
    for rank in run_ranks(drained_job, 2, ckpt_dir, 2, 1, [1]):
        assert [ids for ids, _ in rank["results"]] == rank["whole"]
        assert rank["status"] == [None, 143]


def killed_job(info: RankInfo, ckpt_dir: str) -> None:
    engine = make_engine(launched(info, tp=2, pp=1), ckpt_dir)
    on_forward(engine, 4, n_signals=2)
    engine.generate(PROMPTS, [GREEDY] * len(PROMPTS))


def test_a_second_signal_is_the_end(ckpt_dir: str) -> None:
    for error in run_ranks(killed_job, 2, ckpt_dir, expect_error=True):
        assert isinstance(error, RankDied) and error.exit_code == -signal.SIGTERM


def faces_job(info: RankInfo, ckpt_dir: str) -> dict[str, Any]:
    """A stream whose reader is asked between two outputs; then scores, which cannot be aborted."""
    launched(info, tp=1, pp=1)
    found: dict[str, Any] = {}
    llm = llms.build(ckpt_dir, max_batch_size=2)
    for output in asked_after(llm, 3):
        found[f"request {output.request_id}"] = output.finish_reason
    llms.assert_clean(llm)
    found["status"] = status(llm.context)
    llm = llms.build(ckpt_dir, max_batch_size=1)
    on_forward(llm.engine, 1)
    try:
        llm.score(llms.PROMPTS)
    except SystemExit as leaving:
        found["score"] = leaving.code
    return found


def asked_after(llm: LLM, n_outputs: int) -> Iterator[Any]:
    for number, output in enumerate(llm.stream(llms.PROMPTS, llms.GREEDY)):
        if number == n_outputs:
            os.kill(os.getpid(), signal.SIGTERM)
        yield output


def test_a_stream_shows_what_was_aborted_and_scores_are_all_or_none(tmp_path: Path) -> None:
    ckpt_dir = llms.write_model(tmp_path)
    (found,) = run_ranks(faces_job, 1, ckpt_dir)
    reasons = ["length", "length", "abort", "abort", "abort"]
    assert found == {
        **{f"request {number}": reason for number, reason in enumerate(reasons)},
        "status": 143,
        "score": 143,
    }


def test_what_was_preempted_goes_on() -> None:
    config = EngineConfig(max_seq_len=16, max_batch_size=2, block_size=4)
    scheduler = Scheduler(config, num_blocks=4, ring_blocks=4, vocab_size=64)
    preempted, new = (Request(number, [1, 2], GREEDY, seed=0) for number in range(2))
    preempted.append(3, None, max_seq_len=16)
    scheduler.add(preempted)
    scheduler.add(new)
    assert scheduler.abort_new() == [new]
    assert new.finish_reason == "abort"
    assert list(scheduler.waiting) == [preempted] and scheduler.schedule() is not None
