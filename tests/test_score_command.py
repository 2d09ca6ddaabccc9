"""`llama score` as a user runs it: the number is that of `LLM.score`, whatever the windows."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from llama import LLM
from llama.cli import main
from llama.cli.score_report import ScoreReport
from tests.helpers.llms import write_model
from tests.helpers.programs import run

TEXT = "the meaning of the fox is Paris; the fox of the meaning is not. " * 3


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def llm(ckpt_dir: str) -> LLM:
    return LLM(ckpt_dir, max_seq_len=512, max_batch_size=2)


def found(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["score", *words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def strided_loss(llm: LLM, max_seq_len: int, stride: int) -> float:
    """Each token scored by itself in the window that is due, from the definition."""
    ids = llm.tokenizer.encode(TEXT, True, False)
    logprobs = []
    for token in range(1, len(ids)):
        stop = max_seq_len
        while stop <= token:
            stop += stride
        stop = min(stop, len(ids))
        window = ids[max(0, stop - max_seq_len) : token + 1]
        logprobs.append(llm.score(window)[0].scored[-1])
    return -sum(logprobs) / len(logprobs)


def test_one_window_is_one_score(
    ckpt_dir: str, text_file: str, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    (expected,) = llm.score(TEXT)
    assert main(["score", text_file, "--ckpt_dir", ckpt_dir]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"tokens scored  {expected.n_scored}",
        f"mean loss      {expected.loss:.6g} nats a token",
        f"perplexity     {expected.perplexity:.6g}",
    ]
    assert printed.err.startswith(f"{expected.n_scored} tokens in ")


@pytest.mark.parametrize("stride", [None, 3, 15])
def test_long_texts_are_scored_in_windows(
    ckpt_dir: str, text_file: str, llm: LLM, stride: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [ckpt_dir, text_file, "--max_seq_len", "16"]
    facts = found([*words, *([] if stride is None else ["--stride", str(stride)])], capsys)
    n_tokens = len(llm.tokenizer.encode(TEXT, True, False))
    assert (facts["n_tokens"], facts["n_scored"]) == (n_tokens, n_tokens - 1)
    assert facts["stride"] == (stride or 8)
    assert facts["n_windows"] == 1 + -(-(n_tokens - 16) // facts["stride"])
    assert facts["loss"] == pytest.approx(strided_loss(llm, 16, facts["stride"]), abs=1e-4)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert facts["tokens_per_s"] == pytest.approx(facts["n_scored"] / facts["elapsed_s"])


@pytest.mark.slow
def test_stdin_on_ranks(ckpt_dir: str, text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [ckpt_dir, "--max_seq_len", "32", "--max_batch_size", "2"]
    expected = found([*words, text_file], capsys)
    done = run(["-m", "llama", "score", *words, "-", "--tp", "2", "--json"], stdin=TEXT)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert facts["n_scored"] == expected["n_scored"]


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "cannot read .*text: No such file or directory; name a text file, or - for"),
        (b"", [], "text is empty; there is nothing to score"),
        (b"abc\xff", [], "text is not UTF-8 text: byte 3 is 0xff; convert it to UTF-8 first"),
        (b"abc", ["--stride", "16"], "--stride must be from 1 to max_seq_len - 1 = 15, got 16"),
        (b"abc", ["--stride", "x"], "--stride cannot be 'x'; it is a whole number"),
    ],
)
@pytest.mark.parametrize("layout", [[], ["--tp", "2"]], ids=" ".join)
def test_errors_are_one_line_before_anything_is_loaded(
    content: bytes | None, words: list[str], message: str, layout: list[str], tmp_path: Path,
    ckpt_dir: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    words = [*words, "--max_seq_len", "16", *layout]
    assert main(["score", ckpt_dir, str(path), *words]) == 64
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("llama: error: ") and captured.out == ""
    assert re.search(message, line), line


def test_a_folder_is_no_text(ckpt_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", ckpt_dir, ckpt_dir]) == 64
    assert "Is a directory" in capsys.readouterr().err


def test_an_empty_stdin_is_refused(
    ckpt_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["score", ckpt_dir, "-"]) == 64
    expected = "llama: error: stdin is empty; there is nothing to score\n"
    assert capsys.readouterr() == ("", expected)


def test_a_perplexity_that_json_cannot_say_is_null() -> None:
    report = ScoreReport(
        n_tokens=2, n_windows=1, max_seq_len=8, stride=4, logprobs=(-800.0,), elapsed_s=1.0
    )
    assert json.loads(report.as_json())["perplexity"] is None
    assert report.lines()[-1] == "perplexity     inf"
