"""What Meta's calls return: plain dicts, one a prompt."""

from __future__ import annotations

from typing import TypedDict

from llama.tokenizer import Message

UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."


class Details(TypedDict, total=False):
    """Only there when logprobs were asked for: each token by itself."""

    tokens: list[str]
    logprobs: list[float]


class CompletionPrediction(Details, total=False):
    generation: str


class ChatPrediction(Details, total=False):
    generation: Message


class InfillingPrediction(Details, total=False):
    """`full_text` is prefix, generation and suffix."""

    generation: str
    full_text: str
