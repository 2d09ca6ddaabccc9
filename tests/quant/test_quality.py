"""The demo model still knows its world, and docs/quantisation.md has a row for what is measured."""

from __future__ import annotations

import pytest
import torch

from llama.cli import main
from tests.benchmarks.quality import (
    DEMO,
    METHODS,
    PAGE,
    build,
    divergence,
    facts_right,
    fresh_texts,
    logits,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("wish", "least", "most"),
    [("int8", 1e-7, 5e-5), ("int8_dynamic", 1e-7, 1e-4), ("int4", 1e-4, 5e-3)],
)
def test_what_is_lost_is_little(wish: str, least: float, most: float) -> None:
    """And something is: else it would not have been quantised at all."""
    texts = fresh_texts()[:20]
    plain = torch.cat(logits(build(None), texts))
    llm = build(wish)
    assert least < divergence(plain, torch.cat(logits(llm, texts))) < most
    n_right, n_facts = facts_right(llm)
    assert n_right == n_facts > 50


def test_the_page_has_a_row_for_each_method() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    measured = [line.split("|")[1].strip(" `") for line in lines if line.count("|") == 7]
    assert measured == [method for method in METHODS if method]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(DEMO), "The capital of Ollo is", "--temperature", "0"]
    assert main([*words, "--max_tokens", "8", "--quantize", "int4", "--device", "cpu"]) == 0
    assert "Pim." in capsys.readouterr().out
