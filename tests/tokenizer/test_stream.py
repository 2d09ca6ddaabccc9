"""Streamed pieces add up to the one-shot decode and never end inside a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.tokenizer import StreamDecoder, Tokenizer
from tests.helpers.tokenizers import write_sentencepiece, write_tiktoken

BYTE_0 = 3
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXTS = [
    "the quick brown fox",
    "日本語と中文、한국어",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag",
    "e\u0301 o\u0308\u0323 naïve",
    "   indented\n\n\ttext  ",
    "ends in \ufffd itself",
]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_sentencepiece(tmp_path_factory.mktemp("spm") / "tokenizer.model"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("bpe") / "tokenizer.model"))


@pytest.fixture(params=["spm", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.feed([token_id]) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_real_text_comes_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text, False, False))
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@settings(deadline=None)
@given(data=st.data())
def test_random_ids_add_up_to_the_one_shot_decode(
    spm: Tokenizer, bpe: Tokenizer, data: st.DataObject
) -> None:
    for tokenizer in (spm, bpe):
        some_id = st.integers(0, tokenizer.n_words - 1)
        raw_bytes = st.binary(min_size=1, max_size=6).map(
            lambda raw, t=tokenizer: _byte_ids(t, raw)
        )
        parts = data.draw(st.lists(st.one_of(some_id.map(lambda token_id: [token_id]), raw_bytes)))
        ids = [token_id for part in parts for token_id in part]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
        assert StreamDecoder(tokenizer).feed(ids) == "".join(stream(tokenizer, ids)[:-1])


def _byte_ids(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    if tokenizer.chat_format == "llama2":
        return [BYTE_0 + byte for byte in raw]
    return [tokenizer.model._mergeable_ranks[bytes([byte])] for byte in raw]


def test_bytes_are_held_until_the_character_is_whole(spm: Tokenizer) -> None:
    pieces = stream(spm, [BYTE_0 + byte for byte in "🙂".encode()])
    assert pieces == ["", "", "", "🙂", ""]


def test_an_unfinished_character_ends_as_decode_writes_it(spm: Tokenizer, bpe: Tokenizer) -> None:
    assert stream(spm, _byte_ids(spm, b"\xf0\x9f\x99"))[-1] == REPLACEMENT * 3
    assert stream(bpe, _byte_ids(bpe, b"\xf0\x9f\x99"))[-1] == REPLACEMENT


def test_bytes_that_can_never_be_a_character_are_not_held(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, _byte_ids(tokenizer, b"\x80A")) == [REPLACEMENT, "A", ""]


def test_the_leading_space_of_sentencepiece_is_lost_once(spm: Tokenizer) -> None:
    the = spm.encode("the", False, False)
    assert stream(spm, [spm.bos_id, *the, *the]) == ["", "the", " the", ""]


def test_what_is_held_back_never_grows(spm: Tokenizer) -> None:
    decoder = StreamDecoder(spm)
    n_chars = 0
    for count in range(1, 400):
        n_chars += len(decoder.feed([BYTE_0 + 0xF0]))
        assert n_chars >= count - 3


def test_a_tiktoken_piece_may_end_one_character_and_begin_another(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tiktoken(tmp_path / "tokenizer.model", words=()))
    ids = [tokenizer.model._mergeable_ranks[token] for token in (b"\xe2\x80", b"\x80\xe6")]
    ids += _byte_ids(tokenizer, "日".encode()[1:])
    assert stream(tokenizer, ids) == ["", "\u2000", "", "日", ""]
