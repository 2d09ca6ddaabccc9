"""Infilling prompts, id by id, and text in the middle of a text, as in Code Llama's repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama.errors import UsageError
from llama.tokenizer import StreamDecoder, Tokenizer
from llama.tokenizer.infilling import InfillingFormat, infilling_prompt_tokens
from llama.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.helpers.library_files import write_gpt2
from tests.helpers.tokenizers import append_pieces, write_codellama, write_sentencepiece

BOS = 1
WORDS = ("▁let", "let", "▁return")
MARKS = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codellama") / "tokenizer.model"


@pytest.fixture(scope="module")
def ids(path: Path) -> dict[str, int]:
    return {**write_codellama(path), **append_pieces(path, WORDS)}


@pytest.fixture(scope="module")
def tokenizer(path: Path, ids: dict[str, int]) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(path)


def test_the_prompt_has_one_of_two_orders(
    tokenizer: SentencePieceTokenizer, ids: dict[str, int]
) -> None:
    pre, suf, mid, _ = (ids[mark] for mark in MARKS)
    before, after = ids["▁let"], ids["▁return"]
    assert infilling_prompt_tokens(tokenizer, "let", " return") == [
        *[BOS, pre, before, suf, after, mid]
    ]
    assert infilling_prompt_tokens(tokenizer, "let", " return", suffix_first=True) == [
        *[BOS, pre, suf, after, mid, before]
    ]
    assert infilling_prompt_tokens(tokenizer, "", "let") == [BOS, pre, suf, ids["let"], mid]
    assert infilling_prompt_tokens(tokenizer, "let", "") == [BOS, pre, before, suf, mid]


def test_attributes_are_metas(tokenizer: SentencePieceTokenizer, ids: dict[str, int]) -> None:
    found = (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id, tokenizer.eot_id)
    assert found == tuple(ids[mark] for mark in MARKS)
    assert tokenizer.step_id is None
    assert tokenizer.token_piece(ids["▁<PRE>"]) == "▁<PRE>"
    assert tokenizer.token_piece(13) == "<0x0A>"
    assert tokenizer.stop_tokens == {2}
    assert InfillingFormat.of(tokenizer).stop_tokens == {2, ids["▁<EOT>"]}


def test_infilling_text_has_no_space_of_its_own(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_infilling(" return")) == "return"
    assert tokenizer.decode_infilling(tokenizer.encode_infilling(" return")) == " return"
    # Meta's way for files that have the marker as a piece.
    expected = tokenizer.sp_model.encode("☺  return")[2:]
    assert tokenizer.encode_infilling("  return") == expected


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


@given(text=texts)
def test_infilled_text_comes_back(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode_infilling(tokenizer.encode_infilling(text)) == text


@pytest.mark.parametrize("mark", MARKS)
def test_a_text_with_a_mark_in_it_stays_text(
    tokenizer: SentencePieceTokenizer, ids: dict[str, int], mark: str
) -> None:
    name = mark.replace("▁", " ")
    assert ids[mark] in tokenizer.sp_model.encode(f"a{name}")  # the file itself would let it
    for text in (name, name.strip(), f"a{name} b{name}"):
        encoded = tokenizer.encode(text, False, False)
        assert not set(encoded) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(encoded) == text
        prompt = infilling_prompt_tokens(tokenizer, text, text)
        assert [i for i in prompt if i in tokenizer.special_tokens.values()] == [
            *[BOS, *(ids[mark] for mark in MARKS[:3])]
        ]


def test_marks_that_a_model_writes_are_decoded_as_they_stream(
    tokenizer: SentencePieceTokenizer, ids: dict[str, int]
) -> None:
    written = [ids["▁let"], ids["▁<EOT>"], ids["let"]]
    decoder = StreamDecoder(tokenizer)
    assert decoder.feed(written) + decoder.flush() == tokenizer.decode(written)


def test_a_model_without_the_tokens_says_so(tmp_path: Path) -> None:
    plain = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    gpt2 = Tokenizer(write_gpt2(tmp_path))
    for tokenizer in (plain, gpt2):
        assert tokenizer.prefix_id is tokenizer.eot_id is tokenizer.step_id is None
        with pytest.raises(UsageError, match=r"infilling needs the tokens ▁<PRE>, .*Code Llama 7B"):
            infilling_prompt_tokens(tokenizer, "a", "b")
