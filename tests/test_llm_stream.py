"""`LLM.stream` on one process: its pieces, leaving it early, and that it is alone.

Streams on several ranks are in test_llm, beside what `generate` gives there.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama.errors import UsageError
from llama.llm import LLM
from tests.helpers.llms import (
    GREEDY,
    PROMPTS,
    SEEDED,
    assert_clean,
    build,
    facts,
    joined,
    leave_early,
    stopping,
    write_model,
)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def llm(ckpt_dir: str) -> LLM:
    return build(ckpt_dir)


def test_streams_add_up_and_never_show_part_of_a_stop_string(llm: LLM) -> None:
    params, _ = stopping(llm)
    for settings in (params, [GREEDY] * 5, [replace(SEEDED, max_tokens=40)] * 5):
        whole = llm.generate(PROMPTS, settings)
        stream = list(llm.stream(PROMPTS, settings))
        assert joined(stream) == {output.request_id: output.text for output in whole}
        for output in whole:
            own = [part for part in stream if part.request_id == output.request_id]
            assert len(own) > 3 and [part.finished for part in own[:-1]] == [False] * (len(own) - 1)
            last = replace(own[-1], text=output.text)
            assert last == output
            shown = ""
            for part in own:
                assert part.token_ids == output.token_ids[: len(part.token_ids)]
                shown += part.text
                assert output.text.startswith(shown)


def test_streams_of_several_prompts_are_interleaved(llm: LLM) -> None:
    order = [output.request_id for output in llm.stream(PROMPTS[:3], GREEDY)]
    assert set(order[: len(order) // 2]) == {0, 1, 2}
    assert order != sorted(order)


@pytest.mark.parametrize("how", ["break", "raise"])
def test_leaving_a_stream_early(llm: LLM, how: str) -> None:
    expected = facts(llm.generate(PROMPTS, GREEDY))
    assert leave_early(llm, how=how) == 4
    assert facts(llm.generate(PROMPTS, GREEDY)) == expected
    assert_clean(llm)


def test_one_call_at_a_time(llm: LLM) -> None:
    """Else the inner call would take, and in the end abort, the requests of the outer one."""
    for call in (lambda: llm.generate("x"), lambda: llm.stream("x")):
        stream = llm.stream(PROMPTS, GREEDY)
        next(stream)
        with pytest.raises(UsageError, match="a stream of this engine is under way"):
            call()
        assert [output.finish_reason for output in stream if output.finished] == ["length"] * 5
    assert_clean(llm)
