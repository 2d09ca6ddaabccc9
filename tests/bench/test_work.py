"""Speeds are counted from the moment that a work says."""

from __future__ import annotations

import pytest

from llama.bench.work import WORKS, Event, Trace, Work

TRACE = Trace(
    events=(Event(2.0, 1, 1), Event(3.0, 2, 2), Event(4.0, 4, 2), Event(5.0, 6, 2)),
    token_ids=(7, 8, 9),
)


def work(kind: str) -> Work:
    return Work("w", kind, batch=2, prompt_tokens=30, new_tokens=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "tokens_per_s"),
    [("decode", (6 - 2) / (5 - 3)), ("prefill", 60 / 3), ("whole", (60 + 6) / 5)],
)
def test_tokens_per_second(kind: str, tokens_per_s: float) -> None:
    assert TRACE.tokens_per_s(work(kind)) == tokens_per_s
    assert TRACE.first_token_s == 2.0


@pytest.mark.parametrize("name", WORKS)
def test_prompts_are_ids_of_the_vocabulary_and_differ(name: str) -> None:
    prompts = WORKS[name].prompts(256)
    assert len({tuple(prompt) for prompt in prompts}) == WORKS[name].batch
    assert all(0 < token < 256 for prompt in prompts for token in prompt)
    assert {len(prompt) for prompt in prompts} == {WORKS[name].prompt_tokens}


def test_warming_up_is_no_longer_than_the_work() -> None:
    for each in WORKS.values():
        assert each.warm_up.prompt_tokens <= each.prompt_tokens
        assert each.warm_up.new_tokens <= each.new_tokens
