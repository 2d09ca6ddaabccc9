"""2,000 texts there and back through every kind of tokenizer, with the ids of the library itself.

And any ids at all, streamed one by one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tiktoken.load import load_tiktoken_bpe

from llama.errors import UsageError
from llama.tokenizer import StreamDecoder, Tokenizer
from tests.helpers.library_files import write_gpt2, write_llama2_json, write_llama3_json
from tests.helpers.tokenizers import (
    TEKKEN_SPLIT,
    write_codellama,
    write_sentencepiece,
    write_tekken,
    write_tiktoken,
)

Encode = Callable[[str], list[int]]
N_EXAMPLES, N_TEXTS = 100, 20
ODD = (
    *("🙂", "👩‍👩‍👧", "🏳️‍🌈", "e\u0301", "o\u0308\u0323", "\u200d", "\u202e", "\ufeff", "\ufffd"),
    *("\0", "\x07", "\x1b[0m", "\x7f", "\r\n", "\n\n", "\t", " ", "   ", "\u00a0", "\u2028"),
    *("[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<step>", " <EOT>", "<|eot_id|>"),
    *("<|endoftext|>", " the", "meaning of life", "日本語", "Ġ", "<0x41>", "012345", "naïve"),
)  # fmt: skip
# SentencePiece writes a space as U+2581, and so takes one for the other.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
TEXT = st.lists(st.one_of(st.text(CHARACTERS, max_size=8), st.sampled_from(ODD)), max_size=6)
TEXTS = st.lists(TEXT.map("".join), min_size=N_TEXTS, max_size=N_TEXTS)


def sentencepiece(folder: Path) -> tuple[Path, Encode]:
    path = write_sentencepiece(folder / "tokenizer.model", control=["[INST]", "[/INST]"])
    return path, SentencePieceProcessor(model_file=str(path)).encode


def codellama(folder: Path) -> tuple[Path, Encode]:
    path = folder / "tokenizer.model"
    write_codellama(path)
    return path, SentencePieceProcessor(model_file=str(path)).encode


def llama3(folder: Path) -> tuple[Path, Encode]:
    path = write_tiktoken(folder / "tokenizer.model")
    ranks = load_tiktoken_bpe(str(path))
    split = Tokenizer(path).pat_str  # type: ignore[attr-defined]
    library = tiktoken.Encoding("llama3", pat_str=split, mergeable_ranks=ranks, special_tokens={})
    return path, library.encode_ordinary


def tekken(folder: Path) -> tuple[Path, Encode]:
    path = write_tekken(folder / "tekken.json", n_special=24, words=["the", " me"])
    settings = json.loads(path.read_text())
    used = settings["vocab"][: settings["config"]["default_vocab_size"] - 24]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in used}
    library = tiktoken.Encoding(
        "tekken", pat_str=TEKKEN_SPLIT, mergeable_ranks=ranks, special_tokens={}
    )
    return path, lambda text: [24 + rank for rank in library.encode_ordinary(text)]


def of_transformers(write: Callable[[Path], Path], name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> tuple[Path, Encode]:
        import transformers

        path = write(folder)
        kind = getattr(transformers, name)
        if path.name == "tokenizer.json":
            library = kind(tokenizer_file=str(path))
        else:
            library = kind.from_pretrained(folder)
        return path, lambda text: library.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    return make


KINDS: dict[str, Callable[[Path], tuple[Path, Encode]]] = {
    "sentencepiece": sentencepiece,
    "code llama": codellama,
    "llama3": llama3,
    "tekken": tekken,
    "llama2 json": of_transformers(write_llama2_json, "PreTrainedTokenizerFast"),
    "llama3 json": of_transformers(write_llama3_json, "PreTrainedTokenizerFast"),
    "gpt2": of_transformers(write_gpt2, "GPT2TokenizerFast"),
}


class Pair:
    """Ours, and the ids of the library that it is made with."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        path, self.library = KINDS[kind](folder)
        self.ours = Tokenizer(path)
        self.special = set(self.ours.special_tokens.values())


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("tokenizer"))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.feed([token_id]) for token_id in ids), decoder.flush()]


@settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(texts=TEXTS)
def test_texts_come_back_by_the_librarys_ids(pair: Pair, texts: list[str]) -> None:
    for text in texts:
        ids = pair.ours.encode(text, False, False)
        expected = pair.library(text)
        # Code Llama's file alone would let a text become a special token.
        assert ids == expected or (pair.kind == "code llama" and pair.special & set(expected))
        assert not pair.special & set(ids)
        assert pair.ours.decode(ids) == text
        pieces = streamed(pair.ours, ids)
        assert "".join(pieces) == text and pieces[-1] == ""
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_any_ids_stream_as_they_decode(pair: Pair, data: st.DataObject) -> None:
    n_words = pair.ours.n_words
    for ids in data.draw(st.lists(st.lists(st.integers(0, n_words - 1), max_size=16), max_size=8)):
        assert "".join(streamed(pair.ours, ids)) == pair.ours.decode(ids)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude42"])
def test_lone_surrogates_are_refused(pair: Pair, text: str) -> None:
    with pytest.raises(UsageError, match="text is not valid Unicode"):
        pair.ours.encode(text, False, False)
