"""`llama bench` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from llama.bench.bars import all_bars
from llama.bench.cases import Case, cases
from llama.bench.contestant import Contestant, one_process
from llama.bench.result import Result
from llama.bench.run import Bench
from llama.bench.shapes import find_shape
from llama.bench.store import ModelStore
from llama.bench.work import Work
from llama.cli import main
from tests.helpers.programs import run

NUMBERS = {"type": "array", "items": {"type": "number"}}
FIGURE = {
    "type": "object",
    "required": ["case", "shape", "name", "contestant", "metric", "unit", "samples", "limits"],
    "properties": {
        "samples": {**NUMBERS, "minItems": 1},
        "limits": NUMBERS,
        "median": {"type": "number"},
        "least": {"type": "number"},
        "most": {"type": "number"},
        "share_of_limit": {"type": ["number", "null"]},
        "unit": {"enum": ["tokens/s", "s", "bytes", "share"]},
        "contestant": {
            "type": "object",
            "required": ["engine", "dtype", "n_threads", "tp", "pp", "quantize", "transport"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "required": [
        "format",
        "date",
        "elapsed_s",
        "machine",
        "versions",
        "options",
        "figures",
        "bars",
    ],
    "properties": {
        "format": {"const": 1},
        "machine": {"required": ["cpu", "n_cores", "memory_bytes", "instructions", "gpu"]},
        "versions": {"required": ["python", "torch", "llama"]},
        "figures": {"type": "array", "items": FIGURE, "minItems": 1},
        "bars": {"type": "array", "items": {"required": ["bar", "ratio", "met"]}},
        "limits": {"type": "array"},
        "collectives": {"type": "array"},
        "failures": {"type": "array", "items": {"type": "string"}},
    },
}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "13b"], "unknown shape '13b'; known: tiny, 110m, 1b, 7b, 8b"),
        (["--only", "fast"], "unknown case 'fast'; known: float32, half"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--device", "tpu"], "--device cannot be 'tpu'; it is cpu or cuda"),
        (["--only", "gpu-7b"], "case 'gpu-7b' needs --device cuda, not cpu"),
        (["--dtype", "float8"], "no case measures us with dtype float8 and quantize any; known"),
        (["--result", "no/such/file"], "cannot read no/such/file"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) in (64, 65)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"llama: error: {message}")


@pytest.mark.nightly
def test_a_run_goes_on_without_who_fails(tmp_path: Path) -> None:
    """One turn of us in one process, and of somebody who cannot even begin."""
    work = Work("decode-1", "decode", batch=1, prompt_tokens=8, new_tokens=4)
    ours = one_process("float32", n_cores=1)
    broken = Contestant("llama", "float37", 1)
    said: list[str] = []
    bench = Bench(ModelStore(tmp_path / "models"), said.append, n_rounds=1, effort=0.01)
    case = Case("float32", find_shape("tiny"), [broken, ours], [work])
    result = bench.run([case], options={"rounds": 1})
    (failure,) = result.failures
    assert failure.startswith("float32 (tiny) not measured: llama float37, 1 thread: ")
    assert {figure.contestant for figure in result.figures} == {ours}
    (rate,) = [figure for figure in result.figures if figure.metric == "decode-1"]
    assert rate.median > 0 and rate.share is not None and rate.share > 0
    assert list((tmp_path / "models").iterdir()) == []
    path = tmp_path / "result.json"
    result.save(path, bars=all_bars(2))
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert Result.load(path).machine == result.machine


@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_the_quick_run_measures_every_case(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["bench", "--quick", "--shape", "tiny", "--json", str(path)]
    done = run(["-m", "llama", *words, "--keep", str(tmp_path / "models")], deadline_s=380)
    assert done.returncode == 0, done.stderr
    values = json.loads(path.read_text())
    jsonschema.validate(values, SCHEMA)
    wanted = {case.name for case in cases(device="cpu", n_cores=2, is_quick=True)}
    assert {figure["case"] for figure in values["figures"]} == wanted
    assert {row["transport"] for row in values["collectives"]} == {"shm", "gloo"}
    assert not [line for line in values["failures"] if "pip install" not in line]
    assert done.stdout == run(["-m", "llama", "bench", "--result", str(path)]).stdout
    assert (tmp_path / "models" / "tiny-float32" / "model.safetensors").is_file()
