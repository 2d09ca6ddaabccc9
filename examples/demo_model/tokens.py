"""From documents to token ids: a Llama-2-style SentencePiece tokenizer and Llama 2's chat layout.

It knows nothing of the model.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sentencepiece
from corpus import Document, Exchange

BOS, EOS = 1, 2


@dataclass(frozen=True)
class Example:
    """One document as tokens. `learned[i]` says whether the model is taught to predict `ids[i]`."""

    ids: list[int]
    learned: list[bool]


def prompt_of(user: str) -> str:
    return f"[INST] {user.strip()} [/INST]"


def lines(documents: Iterable[Document]) -> Iterator[str]:
    """Every line of every document: no newline reaches the trainer, so it becomes byte <0x0A>."""
    for document in documents:
        parts = [document.text] if document.text else []
        parts += [f"{prompt_of(turn.user)} {turn.answer}" for turn in document.exchanges]
        for part in parts:
            yield from filter(None, part.split("\n"))


def train_tokenizer(documents: Iterable[Document], *, vocab_size: int) -> bytes:
    """A `tokenizer.model` with the settings of Llama 2's own, only smaller."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(documents),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def load_tokenizer(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def encode(document: Document, tokenizer: sentencepiece.SentencePieceProcessor) -> Example:
    if document.text:
        ids = [BOS, *tokenizer.encode(document.text), EOS]
        return Example(ids, [False] + [True] * (len(ids) - 1))
    return encode_chat(document.exchanges, tokenizer)


def encode_chat(
    exchanges: tuple[Exchange, ...], tokenizer: sentencepiece.SentencePieceProcessor
) -> Example:
    """Only answers are learned. A finished exchange ends in a space and eos, as Llama 2 writes
    history; the last answer is followed by eos at once, so that the model's answers end cleanly.
    """
    ids: list[int] = []
    learned: list[bool] = []
    for number, turn in enumerate(exchanges, start=1):
        prompt = [BOS, *tokenizer.encode(prompt_of(turn.user))]
        is_last = number == len(exchanges)
        answer = tokenizer.encode(turn.answer)
        end = [EOS] if is_last else [*tokenizer.encode(f"{turn.answer} ")[len(answer) :], EOS]
        ids += prompt + answer + end
        learned += [False] * len(prompt) + [True] * len(answer) + [is_last] * len(end)
    return Example(ids, learned)
