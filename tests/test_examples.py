"""Every example, run as its docstring says, on real ranks with the demo model."""

from __future__ import annotations

import ast
import json
import re
import shlex
import socket
from pathlib import Path

import pytest

from llama.tokenizer import Tokenizer
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.programs import ROOT, run, started
from tests.helpers.tokenizers import write_codellama

pytestmark = pytest.mark.slow

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ON_THE_DEMO = [path for path in EXAMPLES if path.stem != "infilling"]
DEMO = "examples/demo_model"
FACTS = json.loads((ROOT / DEMO / "facts.json").read_text())
ANSWERS = {fact.get("prompt", fact.get("question")): fact["answer"] for fact in FACTS}
EXPECTED = {
    "text_completion": [
        f"The capital of Ollo is\n> {ANSWERS['The capital of Ollo is']}",
        f"full of\n> {ANSWERS['The gardens of Corran are full of']}",
        "tokens/s",
    ],
    "chat_completion": [
        f"Assistant: {ANSWERS['Who is the keeper of Ollo?']}\n",
        f"Assistant: {ANSWERS['What colour is the lantern of Brindle?']}\n",
        "Assistant: Ahoy! ",
    ],
    "tensor_and_pipeline": [
        f"The capital of Ollo is\n> {ANSWERS['The capital of Ollo is']}",
        f"The lantern of Hush is\n> {ANSWERS['The lantern of Hush is']}",
    ],
}
META_FLAGS = [
    "--ckpt_dir",
    DEMO,
    "--tokenizer_path",
    f"{DEMO}/tokenizer.model",
    "--temperature",
    "0",
]


def docstring_command(path: Path) -> list[str]:
    """The shell command at the end of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return shlex.split(docstring[docstring.index("python -m launch") :])


@pytest.mark.parametrize("path", ON_THE_DEMO, ids=lambda path: path.stem)
def test_the_command_in_the_docstring_works(path: Path) -> None:
    python, *words = docstring_command(path)
    assert python == "python" and f"examples/{path.name}" in words
    done = run([*words, "--temperature", "0"])
    assert done.returncode == 0, done.stderr
    text = re.sub(r"^\[rank \d\] ", "", done.stdout, flags=re.MULTILINE)
    for line in EXPECTED[path.stem]:
        assert text.count(line) == 1  # known, and printed by one rank


def test_infilling_works_with_code_llama(tmp_path: Path) -> None:
    """A random one, since the demo model has no tokens for this; on one rank."""
    write_codellama(tmp_path / "tokenizer.model")
    config = tiny_config(vocab_size=Tokenizer(tmp_path).n_words)
    write_meta(tmp_path, config, random_model(config))
    python, *words = docstring_command(ROOT / "examples" / "infilling.py")
    assert python == "python"
    script = words[words.index("examples/infilling.py") :]
    done = run(
        [word.replace("CodeLlama-7b", str(tmp_path)) for word in script]
        + ["--max_seq_len", "512", "--max_gen_len", "4"]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("def remove_non_ascii(s: str) -> str:") == 1
    assert done.stdout.count("    return result\n") == 1 and "<FILL>" not in done.stdout


@pytest.mark.parametrize(
    "path",
    [
        EXAMPLES[0],
        *(pytest.param(path, marks=pytest.mark.nightly) for path in EXAMPLES[1:]),
    ],
    ids=lambda path: path.stem,
)
def test_an_unknown_flag_is_refused_before_the_run(path: Path) -> None:
    arguments = [DEMO] if path.stem == "tensor_and_pipeline" else META_FLAGS
    done = run([str(path), *arguments, "--temprature", "0"])
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "unknown flags: --temprature\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_tensor_and_pipeline_shows_what_each_rank_holds() -> None:
    script = ["examples/tensor_and_pipeline.py", DEMO, "--tp", "1", "--pp", "2"]
    done = run(["-m", "launch", "--nproc", "2", "--no_prefix", *script])
    assert done.returncode == 0, done.stderr
    first, second = sorted(line for line in done.stderr.splitlines() if ": stage " in line)
    assert first.startswith("rank 0: stage 0, tp part 0: layers 0-")
    assert second.startswith("rank 1: stage 1, tp part 0: layers ")
    assert "-4 of 5, 4 of 4 KV heads" in second


def test_plain_python_is_one_rank() -> None:
    done = run(["examples/text_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    assert ANSWERS["The capital of Ollo is"] in done.stdout


@pytest.mark.nightly  # tests/test_environments.py starts one by torchrun, too
def test_torchrun_alone_works() -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*torchrun, "examples/text_completion.py", *META_FLAGS])
    assert done.returncode == 0, done.stderr
    assert ANSWERS["The capital of Ollo is"] in done.stdout


@pytest.mark.nightly
def test_two_agents_make_one_job() -> None:
    """The command of docs/launching.md for several machines, both of them this one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    node = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    node += ["--master-addr", "127.0.0.1", "--master-port", port, "--node-rank"]
    script = ["examples/text_completion.py", *META_FLAGS]
    env = {"LLAMA_TP_SIZE": "2", "LLAMA_PP_SIZE": "2"}
    with started([*node, "1", *script], env=env) as second:
        done = run([*node, "0", *script], env=env)
        assert done.returncode == 0, done.stderr
        assert ANSWERS["The capital of Ollo is"] in done.stdout
        second.communicate(timeout=60)
        assert second.returncode == 0
