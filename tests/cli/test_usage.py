"""What `llama` answers without running anything: help, version, and one line for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama import __version__
from llama.cli import COMMANDS, main
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.programs import ROOT, environment, run

DEMO = str(ROOT / "examples" / "demo_model")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(f"\n  {command} " in captured.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_describes_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    usage, *lines = captured.out.splitlines()
    assert usage.startswith(f"usage: llama {command} ")
    options = [line for line in lines if line.startswith("  --")]
    assert options and all(len(line.split("  ")) > 2 for line in options)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llama {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "ckpt_dir"),
        (["generate", DEMO], "no prompt"),
        (["generate", DEMO, "x", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate", DEMO, "x", "--max_tokens", "0"], "--max_tokens must be at least 1, got 0"),
        (["chat", DEMO, "--max_tokens", "0"], "--max_tokens must be at least 1, got 0"),
        (["generate", DEMO, "x", "--max_batch_size", "0"], "max_batch_size must be an integer of"),
        (["generate", DEMO, "x", "--tp", "two"], "--tp cannot be 'two'; it is a whole number or a"),
        (["generate", DEMO, "x", "--attention", "flush"], "known: auto, flash, naive, native"),
        (["generate", DEMO, "x", "--tp", "2", "--quantize", "int7"], "known: fp8, int4, int8"),
        (["generate", DEMO, "x", "--tp", "2", "--quantize", "int8:48"], "one of 32, 64, 128"),
        (["generate", DEMO, "x", "--tp", "0"], "--tp must be at least 1"),
        (["generate", DEMO, "x", "--stats", "xml"], "--stats cannot be 'xml'"),
        (["generate", DEMO, "x", "--verify", "1"], "--verify cannot be '1'"),
        (["generate", DEMO, "x", "--temprature", "0"], "--temprature"),
        (["generate", DEMO, "x", "--", "--tp", "2"], "'--' has no meaning"),
        (["chat", DEMO, "system"], "system; see: llama chat --help"),
        (["chat", DEMO, "run"], "run; see: llama chat --help"),
        (["chat", DEMO, "__class__"], "__class__"),
        (["chart", DEMO], "unknown command 'chart'; known: "),
        (["chart", "--help"], "unknown command 'chart'; known: "),
        (["--frobnicate"], "unknown command '--frobnicate'"),
    ],
)
def test_wrong_usage_is_one_line_and_64(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("llama: error: ") and message in line
    assert captured.out == ""


def test_an_unknown_dtype_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", DEMO, "x", "--dtype", "int3"]) == 64
    assert "unknown dtype 'int3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["generate", "--help"], ["chat", "x", "--frob"], ["frob"]]
)
def test_answers_do_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys; from llama.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert run(["-c", code, *words]).returncode == 0


@pytest.mark.parametrize("layout", [[], ["--tp", "2"]], ids=" ".join)
def test_a_missing_checkpoint_is_one_line(
    layout: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tmp_path / "nowhere"), "x", *layout]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llama: error: ") and "nowhere" in line


def test_an_empty_folder_is_refused_before_any_rank_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(tmp_path), "--pp", "2"]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint files found" in line


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (["--tp", "9"], "tp_size 9 exceeds n_heads 8; use at most 8"),
        (["--pp", "4"], "pp_size 4 exceeds n_layers 3; use at most 3"),
        (["--tp", "auto", "--pp", "4"], "pp_size 4 exceeds n_layers 3"),
    ],
)
def test_an_impossible_layout_is_refused_before_any_rank_starts(
    layout: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    folder = write_meta(tmp_path, config, random_model(config))
    assert main(["generate", str(folder), "x", *layout]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_hook_of_somebody_else_sees_no_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    assert main(["generate", str(tmp_path / "nowhere"), "x"]) == 65
    assert len(capsys.readouterr().err.splitlines()) == 1


def _head_of(words: list[str]) -> subprocess.Popen[str]:
    """`python words...`, whose output has no reader from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE, text=True,
        env=environment({}),
    )  # fmt: skip
    os.close(writer)
    return process


QUESTION = "Who is the keeper of Ollo?\n" * 2
GREEDY = ["--temperature", "0", "--max_tokens", "8", "--max_seq_len", "256"]


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["--help"], ""),
        (["generate", "--help"], ""),
        (["generate", DEMO, "x", *GREEDY], ""),
        pytest.param(["chat", DEMO, "--tp", "2", *GREEDY], QUESTION, marks=pytest.mark.slow),
    ],
    ids=lambda words: " ".join(words[:1]) if isinstance(words, list) else "",
)
def test_output_that_nobody_reads_is_a_quiet_141(words: list[str], stdin: str) -> None:
    with _head_of(["-m", "llama", *words]) as process:
        try:
            _, stderr = process.communicate(stdin, timeout=90)
        finally:
            process.kill()
    assert process.returncode == 141, stderr
    assert "Traceback" not in stderr and "BrokenPipe" not in stderr
    assert "exited" not in stderr


def test_python_m_llama_is_the_command() -> None:
    done = run(["-m", "llama", "--version"])
    assert (done.returncode, done.stdout) == (0, f"llama {__version__}\n")
    assert run(["-m", "llama.cli", "--version"]).stdout == done.stdout
