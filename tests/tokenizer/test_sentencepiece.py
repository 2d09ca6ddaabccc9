"""The Llama 2 tokenizer: Meta's attributes and calls, and errors where Meta's has asserts."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import CheckpointError, UsageError
from llama.tokenizer import Tokenizer
from llama.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.helpers.tokenizers import write_sentencepiece

BYTE_0 = 3  # the id of <0x00> in Llama's layout


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_sentencepiece(tmp_path_factory.mktemp("spm") / "tokenizer.model"))


def test_attributes_are_those_of_llama_2(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (400, 1, 2)
    assert tokenizer.pad_id == -1
    assert tokenizer.stop_tokens == {2}
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}
    assert tokenizer.sp_model.vocab_size() == 400


def test_encode_adds_bos_and_eos_and_takes_both_call_styles(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the meaning", False, False)
    assert tokenizer.encode("the meaning", bos=True, eos=False) == [1, *ids]
    assert tokenizer.encode("the meaning", True, True) == [1, *ids, 2]
    assert tokenizer.encode("", True, True) == [1, 2]
    with pytest.raises(TypeError):
        tokenizer.encode("the meaning")  # both are required, as in Meta's


@pytest.mark.parametrize("text", ["the  quick\n\tfox", "日本語 🙂 e\u0301", "a\0b", " leading"])
def test_decode_of_encode_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, True, True)) == text


def test_decode_takes_one_id_and_drops_control_ids(tokenizer: Tokenizer) -> None:
    (piece,) = tokenizer.encode("I", False, False)
    assert tokenizer.decode(piece) == "I"
    assert tokenizer.decode([1, piece, 2]) == "I"
    assert tokenizer.decode([]) == ""


def test_special_names_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("</s><s>", False, False)
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "</s><s>"


def test_token_bytes_are_raw(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(BYTE_0 + 0xE2) == b"\xe2"
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.token_bytes(0) == " \u2047 ".encode()
    ids = tokenizer.encode("the 日", False, False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == " the 日".encode()


@pytest.mark.parametrize("text", [None, b"bytes", ["list"], 7])
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, text: object) -> None:
    with pytest.raises(UsageError, match="must be a str, got"):
        tokenizer.encode(text, True, False)  # type: ignore[arg-type]


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        tokenizer.encode("a\ud800b", True, False)


@pytest.mark.parametrize("token_id", [-1, 400])
def test_an_unknown_id_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(UsageError, match=rf"token id {token_id} is outside 0\.\.399"):
        tokenizer.decode([5, token_id])


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = write_sentencepiece(tmp_path / "tokenizer.model")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a whole SentencePiece"):
        Tokenizer(path)
