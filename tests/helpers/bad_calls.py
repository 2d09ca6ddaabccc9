"""Calls that must be refused, on a loaded model: by name, the call and the refusal."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any

from llama.engine.sequence import SamplingParams
from llama.errors import RankMismatchError, UnknownNameError, UsageError
from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.refusals import GOOD_PROMPT, MAX_BATCH_SIZE, MAX_SEQ_LEN, Refusal, refused

HOST = socket.gethostname()
Call = Callable[[Llama], object]
LONG = [[1] + [9] * MAX_SEQ_LEN]
LONG_TEXT = "the quick brown fox " * 8


def _generate(prompts: Any = None, **settings: Any) -> Call:
    return lambda llama: llama.generate(prompts or [GOOD_PROMPT], **{"max_gen_len": 4, **settings})


def _complete(prompts: Any, **settings: Any) -> Call:
    return lambda llama: llama.text_completion(prompts, **settings)


def _chat(dialogs: Any, **settings: Any) -> Call:
    return lambda llama: llama.chat_completion(dialogs, **settings)


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


TOO_LONG = refused(UsageError, "prompt 0 has", f"max_seq_len {MAX_SEQ_LEN}", "shorten")
TOO_MANY = refused(UsageError, "batch of 3", f"max_batch_size {MAX_BATCH_SIZE}", "send fewer")
CALLS: dict[str, tuple[Call, Refusal]] = {
    "long prompt of ids": (_generate(LONG), TOO_LONG),
    "long prompt of text": (_complete([LONG_TEXT]), TOO_LONG),
    "long dialog": (_chat([_user(LONG_TEXT)]), TOO_LONG),
    "many prompts of ids": (_generate([GOOD_PROMPT] * 3), TOO_MANY),
    "many prompts of text": (_complete(["x"] * 3), TOO_MANY),
    "many dialogs": (_chat([_user("x")] * 3), TOO_MANY),
    "empty prompt": (_generate([GOOD_PROMPT, []]), refused(UsageError, "prompt 1", "at least")),
    "empty dialog": (_chat([[]]), refused(UsageError, "dialog")),
    "id above the vocabulary": (_generate([[1, 400]]), refused(UsageError, "1 is 400", "0 to 399")),
    "id below zero": (_generate([[-1]]), refused(UsageError, "0 is -1", "0 to 399")),
    "id that is no integer": (_generate([[1.5]]), refused(UsageError, "integer", "float")),
    "flat list of ids": (_generate([1, 2]), refused(UsageError, "prompts must be lists")),
    "no list of ids": (_generate(7), refused(UsageError, "prompts must be")),
    "one text": (_complete("hello"), refused(UsageError, "list of texts", "'hello'")),
    "no text": (_complete([3]), refused(UsageError, "str", "int")),
    "no list of texts": (_complete(None), refused(UsageError, "list of texts", "None")),
    "no list of dialogs": (_chat(None), refused(UsageError, "list of dialogs", "None")),
    "no list of messages": (_chat(_user("x")), refused(UsageError, "list of messages", "dict")),
    "message without text": (_chat([_user(None)]), refused(UsageError, "content")),
    "unknown chat format": (
        _chat([_user("x")], chat_format="vicuna"),
        refused(UnknownNameError, "'vicuna'", "known: codellama"),
    ),
    "infilling without its tokens": (
        lambda llama: llama.text_infilling(["x"], ["y"]),
        refused(UsageError, "infilling needs the tokens", "use Code Llama"),
    ),
    "unknown role": (
        _chat([[{"role": "robot", "content": "x"}]]),
        refused(UsageError, "robot"),
    ),
    "NaN temperature": (
        _complete(["x"], temperature=math.nan),
        refused(UsageError, "temperature", "finite", "nan"),
    ),
    "temperature below zero": (
        _chat([_user("x")], temperature=-1.0),
        refused(UsageError, "temperature must be at least 0", "-1.0"),
    ),
    "temperature as text": (
        _generate(temperature="hot"),
        refused(UsageError, "temperature", "'hot'"),
    ),
    "top_p of zero": (
        _complete(["x"], top_p=0.0),
        refused(UsageError, "top_p must be above 0 and at most 1", "0.0"),
    ),
    "top_p above one": (
        _chat([_user("x")], top_p=1.5),
        refused(UsageError, "top_p must be above 0 and at most 1", "1.5"),
    ),
    "top_p above one, greedy": (
        _generate(top_p=1.5, temperature=0),
        refused(UsageError, "top_p must be above 0 and at most 1", "1.5"),
    ),
    "NaN top_p": (_generate(top_p=math.nan), refused(UsageError, "top_p", "finite", "nan")),
    "max_gen_len below zero": (
        _complete(["x"], max_gen_len=-1),
        refused(UsageError, "max_gen_len", "at least 0, got -1"),
    ),
    "max_gen_len as text": (
        _chat([_user("x")], max_gen_len="4"),
        refused(UsageError, "max_gen_len", "integer", "'4'"),
    ),
}

LLM_LONG = refused(UsageError, "prompt of", f"max_seq_len is {MAX_SEQ_LEN}", "shorten")
LLM_CALLS: dict[str, tuple[Callable[[LLM], object], Refusal]] = {
    "long prompt of ids": (lambda llm: llm.generate(LONG), LLM_LONG),
    "long prompt of text": (lambda llm: llm.generate(LONG_TEXT), LLM_LONG),
    "long prompt, streamed": (lambda llm: list(llm.stream(LONG)), LLM_LONG),
    "empty prompt": (
        lambda llm: llm.generate([GOOD_PROMPT, []]),
        refused(UsageError, "empty", "at least"),
    ),
    "id above the vocabulary": (
        lambda llm: llm.generate([1, 400]),
        refused(UsageError, "1 is 400", "0 to 399"),
    ),
    "id that is no integer": (
        lambda llm: llm.generate([[1, 1.5]]),  # type: ignore[arg-type]
        refused(UsageError, "1.5", "integers from 0"),
    ),
    "no prompt": (
        lambda llm: llm.generate(None),  # type: ignore[arg-type]
        refused(UsageError, "prompts", "None"),
    ),
    "prompt of no kind": (
        lambda llm: llm.generate([None]),  # type: ignore[arg-type]
        refused(UsageError, "prompt 0", "None"),
    ),
    "parameters of no kind": (
        lambda llm: llm.generate("x", {"temperature": 0}),  # type: ignore[arg-type]
        refused(UsageError, "must be SamplingParams", "temperature"),
    ),
    "more parameters than prompts": (
        lambda llm: llm.generate("x", [SamplingParams()] * 2),
        refused(UsageError, "2 sampling_params for 1 prompt"),
    ),
    "stop token outside the vocabulary": (
        lambda llm: llm.generate("x", SamplingParams(stop_token_ids=(400,))),
        refused(UsageError, "stop_token_ids", "400", "0 to 399"),
    ),
    "NaN temperature": (
        lambda llm: llm.generate("x", SamplingParams(temperature=math.nan)),
        refused(UsageError, "temperature", "finite", "nan"),
    ),
    "top_p of zero": (
        lambda llm: llm.generate("x", SamplingParams(top_p=0.0)),
        refused(UsageError, "top_p must be above 0 and at most 1", "0.0"),
    ),
    "max_tokens below zero": (
        lambda llm: llm.generate("x", SamplingParams(max_tokens=-1)),
        refused(UsageError, "max_tokens must be an integer from 0", "got -1"),
    ),
}


def differing_calls(rank: int) -> dict[str, tuple[Call, Refusal]]:
    """Calls that rank 1 makes in another way than rank 0."""

    def mismatch(*parts: str) -> Refusal:
        return refused(RankMismatchError, "give every rank the same", f"rank 1 ({HOST})", *parts)

    odd = rank == 1
    return {
        "temperature": (
            _complete(["x"], temperature=0.9 if odd else 0.6),
            mismatch("temperature: 0.6 on rank 0; 0.9 on rank 1"),
        ),
        "NaN temperature on one": (
            _complete(["x"], temperature=math.nan if odd else 0.6),
            mismatch("temperature: 0.6 on rank 0; NaN on rank 1"),
        ),
        "prompts": (_complete(["y" if odd else "x"]), mismatch('prompts: ["x"] on rank 0; ["y"]')),
        "number of prompts": (_generate([GOOD_PROMPT] * (1 + odd)), mismatch("prompts: ")),
        "dialogs": (_chat([_user("y" if odd else "x")]), mismatch("prompts: ")),
        "call": (_complete(["x"]) if odd else _chat(["x"]), mismatch("call: ")),
    }
