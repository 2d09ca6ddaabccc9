"""What a rank says of where it is while it loads, generates, waits and fails; see `Whereabouts`."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from llama.engine.sequence import SamplingParams
from llama.errors import PeerLostError
from llama.parallel.context import ParallelContext
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.engines import make_engine
from tests.helpers.ranks import run_layout
from tests.helpers.spied import spied

CONFIG = tiny_config(n_kv_heads=2)  # three layers: two on the first of two stages, one on the last
PROMPT = [[1, 2, 3]]
GREEDY = [SamplingParams(temperature=0.0, max_tokens=3)]


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whereabouts") / "ckpt"
    return str(write_meta(folder, CONFIG, random_model(CONFIG), n_files=2))


def calls_job(context: ParallelContext, ckpt_dir: str) -> dict[str, list[str]]:
    seen, at = spied(context.whereabouts), context.whereabouts
    found = {"before": [at.describe()]}

    def note(name: str) -> None:
        found[name] = seen.copy()
        del seen[:-1]

    engine = make_engine(context, ckpt_dir)
    note("load")
    engine.generate(PROMPT, GREEDY)
    note("generate")
    stream = engine.stream(engine.make_requests(PROMPT, GREEDY))
    found["yields"] = [at.describe() for _ in stream]
    note("stream")
    context.agree({"seed": 1})
    engine.stats()
    note("waits")
    return {**found, "after": [at.describe()], "waiting_for": [str(at.waiting_for)]}


LAYERS = {(2, 1): [[0, 1, 2], [0, 1, 2]], (1, 2): [[0, 1], [2]]}
"""By (tp, pp), those of each rank."""
NEIGHBOUR = {(2, 1): ["tp all_reduce", "tp all_reduce"], (1, 2): [None, "pp receive"]}
"""What a rank waits for within a step; a stage that shares memory with the next need not wait."""


def places(seen: list[str]) -> list[str]:
    """Where in a step, in order."""
    found = [re.match(r"STEP \(generate, step \d+, layer \d+\)", line) for line in seen]
    return list(dict.fromkeys(match[0] for match in found if match))


@pytest.mark.parametrize(("tp", "pp"), LAYERS)
def test_phase_step_layer_file_and_what_is_waited_for(ckpt_dir: str, tp: int, pp: int) -> None:
    for rank, found in enumerate(run_layout(calls_job, ckpt_dir, tp=tp, pp=pp)):
        (idle,) = found["before"]
        assert idle.startswith("IDLE (")
        assert found["after"] == [idle] and found["waiting_for"] == ["None"]
        files = {f"LOAD (loading the checkpoint, consolidated.0{n}.pth)" for n in range(2)}
        assert files & set(found["load"])
        for name, first in (("generate", 1), ("stream", 4)):
            assert places(found[name]) == [
                f"STEP (generate, step {step}, layer {layer})"
                for step in range(first, first + 3)
                for layer in LAYERS[tp, pp][rank]
            ]
            neighbour = f" for {NEIGHBOUR[tp, pp][rank]} with rank {1 - rank}"
            waits = any(line.startswith("STEP") and neighbour in line for line in found[name])
            assert waits or NEIGHBOUR[tp, pp][rank] is None
            next_plan = "WAIT (waiting for the next plan) for messages receive with rank 0"
            assert (next_plan in found[name]) == (rank == 1)
        assert found["yields"] == [idle] * len(found["yields"])
        calls = {line.partition(" for world")[0] for line in found["waits"] if " for world" in line}
        assert calls == {"WAIT (comparing settings)", "WAIT (waiting for all ranks' figures)"}


def failing_job(context: ParallelContext, ckpt_dir: str) -> None:
    engine = make_engine(context, ckpt_dir)
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the wheel fell off")

    if context.rank == 1:
        engine.stage.layers["2"].register_forward_pre_hook(fail)
    engine.generate(PROMPT, GREEDY)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_a_failure_in_a_layer_is_told_with_step_and_layer(ckpt_dir: str, tp: int, pp: int) -> None:
    other, own = run_layout(failing_job, ckpt_dir, tp=tp, pp=pp, expect_error=True)
    assert type(own) is RuntimeError
    assert isinstance(other, PeerLostError)
    assert f"first failure: rank 1 ({socket.gethostname()}, pid " in str(other)
    assert "in STEP (generate, step 2, layer 2): RuntimeError: the wheel fell off" in str(other)
