"""Every turn is a process of its own, or ranks; what fails says why, and nothing is left."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llama.bench.contestant import one_process, ranks
from llama.bench.process import ProcessFailure, run
from llama.bench.shapes import find_shape
from llama.bench.task import Measured, Task
from llama.bench.weights import write_weights
from llama.bench.work import Event, Trace, Work
from tests.helpers.programs import descendants

SHORT = Work("decode-2", "decode", batch=2, prompt_tokens=8, new_tokens=4)
OURS = one_process("float32", n_cores=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(find_shape("tiny"), tmp_path_factory.mktemp("models"))


def test_a_task_and_what_was_measured_survive_their_files(tmp_path: Path) -> None:
    task = Task("works", OURS, Path("model"), works=(SHORT,), effort=0.5)
    task.save(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == task
    trace = Trace([Event(0.5, 2, 2)], [3])
    measured = Measured({"w": trace}, {"load_s": 1.0}, [{"nbytes": 8}], ["note"])
    measured.save(tmp_path / "0.json")
    assert Measured.load(tmp_path / "0.json") == replace(
        measured, traces={"w": Trace((Event(0.5, 2, 2),), [3])}
    )


@pytest.mark.nightly
def test_two_ranks_find_the_tokens_of_one_process(model: Path) -> None:
    one = run(Task("works", OURS, model, works=(SHORT,)), deadline_s=90)
    two = run(Task("works", ranks("float32", n_cores=2), model, works=(SHORT,)), deadline_s=90)
    own = one.first.traces["decode-2"]
    assert list(own.token_ids) == list(two.first.traces["decode-2"].token_ids)
    assert own.events[-1].n_tokens == 2 * 4
    assert len(two.ranks) == 2 and not two.ranks[1].traces
    vectors = 4 * (2 * 2 + 1) * 64
    products = 4 * find_shape("tiny").product_parameters
    assert products <= one.total("read_bytes") <= products + vectors
    assert products <= two.total("read_bytes") <= products + 2 * vectors
    assert one.most("peak_bytes") > products and one.most("load_s") > 0


def test_a_failure_says_what_the_process_said(tmp_path: Path) -> None:
    task = Task("works", OURS, tmp_path / "none", works=(SHORT,))
    with pytest.raises(ProcessFailure, match=r"llama float32, 1 thread: .*Error: .*none"):
        run(task, deadline_s=90)


def test_ranks_that_take_too_long_are_ended(model: Path) -> None:
    endless = replace(SHORT, new_tokens=10**6)
    task = Task("works", ranks("float32", n_cores=2), model, works=(endless,))
    before = set(descendants(os.getpid()))
    with pytest.raises(ProcessFailure, match="not done after 3 s"):
        run(task, deadline_s=3)
    assert set(descendants(os.getpid())) <= before
