"""LLMs over a random model whose text has unfinished characters in it, and what to ask of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.engine.sequence import RequestOutput, SamplingParams
from llama.llm import LLM
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.tokenizers import write_sentencepiece

CONFIG = tiny_config(n_kv_heads=2, vocab_size=400)
PROMPTS: list[Any] = ["the meaning", [1, 60, 8, 8, 23, 99, 3], "Paris", [1, 5], "of the fox"]
N_TOKENS = 24
GREEDY = SamplingParams(temperature=0.0, max_tokens=N_TOKENS, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, top_k=200, seed=7, max_tokens=12)


def write_model(folder: Path) -> str:
    """A folder with `random_model(CONFIG)` in two files, and a tokenizer; returns its path."""
    write_meta(folder, CONFIG, random_model(CONFIG), n_files=2)
    write_sentencepiece(folder / "tokenizer.model")
    return str(folder)


def build(ckpt_dir: str, **options: Any) -> LLM:
    """An LLM that runs four requests at once, so that PROMPTS do not all fit."""
    sizes = {"max_seq_len": 64, "max_batch_size": 4, "block_size": 4}
    return LLM(ckpt_dir, **{**sizes, **options})


def facts(outputs: Sequence[RequestOutput]) -> list[tuple[Any, ...]]:
    """What must not depend on the layout, without rounding."""
    return [(o.request_id, o.text, tuple(o.token_ids), o.finish_reason) for o in outputs]


def joined(stream: Iterable[RequestOutput]) -> dict[int, str]:
    """Everything that a stream showed of each request."""
    texts: dict[int, str] = {}
    for output in stream:
        texts[output.request_id] = texts.get(output.request_id, "") + output.text
    return texts


def split_stop(llm: LLM, token_ids: Sequence[int]) -> tuple[str, int]:
    """Two characters on both sides of a token boundary, and how many tokens it takes to see them.

    They occur nowhere before.
    """
    text = llm.tokenizer.decode(list(token_ids))
    for n_tokens in range(4, len(token_ids)):
        before = llm.tokenizer.decode(list(token_ids[:n_tokens]))
        after = llm.tokenizer.decode(list(token_ids[: n_tokens + 1]))
        stop = text[len(before) - 1 : len(before) + 1]
        is_whole = text.startswith(after) and "\ufffd" not in after[-3:] + stop
        if is_whole and len(after) > len(before) and text.find(stop) == len(before) - 1:
            return stop, n_tokens + 1
    raise AssertionError("no such place in this text")


def stopping(llm: LLM) -> tuple[list[SamplingParams], list[int]]:
    """For each prompt a stop string that its greedy text reaches, and after how many tokens."""
    outputs = llm.generate(PROMPTS, GREEDY)
    stops = [split_stop(llm, output.token_ids) for output in outputs]
    return [replace(GREEDY, stop=(stop, "never")) for stop, _ in stops], [n for _, n in stops]


def assert_clean(llm: LLM) -> None:
    """No request and no text is left, and every block is free."""
    assert not llm.engine.scheduler.has_unfinished and not llm.engine.scheduler.in_flight
    assert llm.engine.scheduler.num_free_blocks == llm.engine.cache.num_blocks
    assert llm.engine.outputs is not None and not llm.engine.outputs._streams


def leave_early(llm: LLM, *, how: str) -> int:
    """Stream the prompts and leave on the fourth output; how many were seen."""
    seen = 0
    stream = llm.stream(PROMPTS, GREEDY)
    try:
        for seen, _ in enumerate(stream, 1):
            if seen == 4 and how == "break":
                break
            if seen == 4 and how == "raise":
                raise KeyError("the consumer's own")
    except KeyError:
        assert how == "raise"
    stream.close()
    assert_clean(llm)
    return seen
