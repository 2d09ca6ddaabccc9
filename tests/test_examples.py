"""Every example, run as its docstring says, on real ranks with the demo model."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

from tests.helpers.programs import ROOT, run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DEMO = "examples/demo_model"
FACTS = json.loads((ROOT / DEMO / "facts.json").read_text())
ANSWERS = {fact.get("prompt", fact.get("question")): fact["answer"] for fact in FACTS}
META_FLAGS = [
    "--ckpt_dir",
    DEMO,
    "--tokenizer_path",
    f"{DEMO}/tokenizer.model",
    "--temperature",
    "0",
]
LAYOUTS = ["--tp 1", "--tp 2", "--pp 2", "--tp 2 --pp 2"]


def docstring_command(path: Path) -> list[str]:
    """The shell command at the end of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return shlex.split(docstring[docstring.index("python -m launch") :])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_in_the_docstring_works(path: Path) -> None:
    python, *words = docstring_command(path)
    assert python == "python" and f"examples/{path.name}" in words
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_completion_knows_the_facts(layout: str) -> None:
    done = run(["-m", "launch", *layout.split(), "examples/text_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    for prompt in ("The capital of Ollo is", "The gardens of Corran are full of"):
        assert f"{prompt}\n> {ANSWERS[prompt]}" in done.stdout
    assert done.stdout.count("\n> ") == 4  # one rank prints
    assert "tokens/s" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chat_completion_knows_the_answers(layout: str) -> None:
    done = run(["-m", "launch", *layout.split(), "examples/chat_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    assert f"Assistant: {ANSWERS['Who is the keeper of Ollo?']}\n" in done.stdout
    assert f"Assistant: {ANSWERS['What colour is the lantern of Brindle?']}\n" in done.stdout
    assert "Assistant: Ahoy! " in done.stdout


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_tensor_and_pipeline_cuts_the_model(tp: int, pp: int) -> None:
    script = ["examples/tensor_and_pipeline.py", DEMO, "--tp", str(tp), "--pp", str(pp)]
    done = run(["-m", "launch", "--nproc", str(tp * pp), *script])
    assert done.returncode == 0, done.stderr
    holdings = [line for line in done.stderr.splitlines() if ": stage " in line]
    assert len(holdings) == tp * pp
    assert all(f"{4 // tp} of 4 KV heads" in line for line in holdings)
    streamed, finished = done.stdout.split("\n", 1)
    answer = ANSWERS["The capital of Ollo is"]
    assert streamed.startswith(answer)
    assert f"The capital of Ollo is\n> {streamed}  [stop]" in finished


def test_plain_python_is_one_rank() -> None:
    done = run(["examples/text_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    assert ANSWERS["The capital of Ollo is"] in done.stdout


def test_torchrun_alone_works() -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*torchrun, "examples/text_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    assert ANSWERS["The capital of Ollo is"] in done.stdout
