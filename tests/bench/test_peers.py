"""Peers compute the same model from the same weights, and are named when they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.bench import peers
from llama.bench.cases import Case
from llama.bench.contestant import EngineName, one_process, peer
from llama.bench.process import run
from llama.bench.run import Bench
from llama.bench.shapes import find_shape
from llama.bench.store import ModelStore
from llama.bench.task import Task
from llama.bench.work import Work

TINY = find_shape("tiny")
WORKS = (
    Work("decode-1", "decode", batch=1, prompt_tokens=16, new_tokens=17),
    Work("decode-3", "decode", batch=3, prompt_tokens=8, new_tokens=5),
)


@pytest.mark.nightly
@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_a_peer_finds_our_greedy_tokens(tmp_path: Path, engine: EngineName) -> None:
    """So the file written for llama.cpp holds our weights in its own order."""
    if peers.missing(engine):
        pytest.skip(f"needs {' '.join(peers.missing(engine))}")
    store = ModelStore(tmp_path)
    found: list[dict[str, Any]] = []
    for one in (one_process("float32", n_cores=1), peer(engine, "float32", n_cores=1)):
        task = Task("works", one, store.model_for(TINY, one), works=WORKS)
        traces = run(task, deadline_s=90).first.traces
        found.append({name: list(trace.token_ids) for name, trace in traces.items()})
        assert [trace.events[-1].n_tokens for trace in traces.values()] == [17, 15]
    assert found[0] == found[1]


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_llama_cpp_loads_every_kind_of_file(tmp_path: Path, dtype: str) -> None:
    if peers.missing("llama.cpp"):
        pytest.skip(f"needs {' '.join(peers.missing('llama.cpp'))}")
    contestant = peer("llama.cpp", dtype, n_cores=1)
    model = ModelStore(tmp_path).model_for(TINY, contestant)
    assert (
        model.stat().st_size
        < {"q8_0": 1.2, "float16": 2.1, "bfloat16": 2.1}[dtype] * (TINY.n_parameters) + 2**16
    )
    traces = run(Task("works", contestant, model, works=WORKS), deadline_s=90).first.traces
    assert len(traces["decode-1"].token_ids) == 17


def test_a_missing_peer_is_a_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PACKAGES", {"llama.cpp": ("llama-cpp-python", "no-such-thing")})
    said: list[str] = []
    case = Case("x", TINY, [peer("llama.cpp", dtype, n_cores=1) for dtype in ("float32", "q8_0")])
    bench = Bench(ModelStore(tmp_path), said.append, n_rounds=1, effort=0.01)
    result = bench.run([case], options={})
    (line,) = result.failures
    assert line.startswith("llama.cpp not measured: pip install ")
    assert line.endswith("no-such-thing")
    assert line in said
    assert result.figures == []
