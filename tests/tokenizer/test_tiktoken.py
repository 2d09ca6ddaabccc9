"""The Llama 3 tokenizer: the published facts, on a file with the published numbers."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from llama.errors import CheckpointError, UsageError
from llama.tokenizer import Tokenizer
from llama.tokenizer.tiktoken import MAX_ENCODE_CHARS, MAX_RUN_CHARS, encodable_parts
from tests.helpers.tokenizers import (
    byte_ranks,
    write_llama3_like,
    write_ranks,
    write_tiktoken,
)

PUBLISHED = {
    2028: "This",
    374: " is",
    264: " a",
    1296: " test",
    11914: " sentence",
    882: "user",
    9125: "system",
    78191: "assistant",
    271: "\n\n",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tiktoken(tmp_path_factory.mktemp("bpe") / "tokenizer.model"))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "llama3.model"
    return Tokenizer(write_llama3_like(path, PUBLISHED))


def test_ids_are_the_published_ones(llama3: Tokenizer) -> None:
    assert llama3.n_words == 128256
    assert (llama3.bos_id, llama3.eos_id, llama3.pad_id) == (128000, 128001, -1)
    assert len(llama3.special_tokens) == 256
    names = {
        128002: "<|reserved_special_token_0|>",
        128005: "<|reserved_special_token_3|>",
        128006: "<|start_header_id|>",
        128007: "<|end_header_id|>",
        128008: "<|reserved_special_token_4|>",
        128009: "<|eot_id|>",
        128010: "<|reserved_special_token_5|>",
        128255: "<|reserved_special_token_250|>",
    }
    assert {llama3.special_tokens[name]: name for name in names.values()} == names
    assert llama3.stop_tokens == {128001, 128008, 128009}


def test_the_published_sentence_has_the_published_ids(llama3: Tokenizer) -> None:
    ids = [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3.encode("This is a test sentence.", bos=True, eos=True) == ids
    assert llama3.decode(ids) == "<|begin_of_text|>This is a test sentence.<|end_of_text|>"


def test_both_call_styles(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" hello", False, False)
    assert len(ids) == 1
    assert tokenizer.encode(" hello", True, True) == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.encode(" hello", bos=False, eos=False) == ids
    assert tokenizer.decode(ids[0]) == " hello"


def test_special_names_in_a_text_stay_text_unless_allowed(tokenizer: Tokenizer) -> None:
    eot = tokenizer.special_tokens["<|eot_id|>"]
    ids = tokenizer.encode("a<|eot_id|>", bos=False, eos=False)
    assert max(ids) < min(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == "a<|eot_id|>"
    allowed = tokenizer.encode("<|eot_id|>", bos=False, eos=False, allowed_special={"<|eot_id|>"})
    assert allowed == [eot]
    assert tokenizer.encode("<|eot_id|>", bos=False, eos=False, allowed_special="all") == [eot]
    with pytest.raises(UsageError, match="disallowed special token"):
        tokenizer.encode("<|eot_id|>", bos=False, eos=False, disallowed_special="all")


@pytest.mark.parametrize("text", ["", " ", "a\r\nb", "日本語 🙂 e\u0301\u200d", "x" * 3000, "\0"])
def test_decode_of_encode_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=False)) == text


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_unknown_id_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(UsageError, match=f"token id {token_id} is outside"):
        tokenizer.decode([token_id])


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="must be a str, got bytes"):
        tokenizer.encode(b"x", bos=True, eos=False)  # type: ignore[arg-type]


def test_long_texts_are_cut_at_both_limits() -> None:
    run = MAX_RUN_CHARS
    text = "ab " + "x" * (2 * run + 7) + " " * (run + 1) + "tail " * 80_000
    parts = list(encodable_parts(text))
    assert "".join(parts) == text
    lengths = [3 + run, run, 7 + run]
    assert [len(part) for part in parts[:3]] == lengths
    assert len(parts[3]) == MAX_ENCODE_CHARS - sum(lengths)
    assert list(encodable_parts("y" * run)) == ["y" * run]


def test_a_long_run_is_encoded_as_its_parts(tokenizer: Tokenizer) -> None:
    part = "x" * MAX_RUN_CHARS
    ids = tokenizer.encode(part, False, False)
    assert tokenizer.encode(part + part, False, False) == ids + ids


def _line(token: bytes, rank: object) -> bytes:
    return base64.b64encode(token) + f" {rank}\n".encode()


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"not base64 at all\n", r"line 257 is not \"base64 rank\""),
        (b"YWI=", r"line 257 is not \"base64 rank\""),
        (_line(b"ab", 300), "not the ranks 0 to 256, once each"),
        (_line(b"ab", 3), "not the ranks 0 to 256, once each"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, tail: bytes, reason: str) -> None:
    path = write_ranks(tmp_path / "tokenizer.model", byte_ranks())
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_file_without_all_bytes_is_refused(tmp_path: Path) -> None:
    ranks = byte_ranks()
    ranks[b"zz"] = ranks.pop(b"z")
    with pytest.raises(CheckpointError, match="no token for byte 0x7a"):
        Tokenizer(write_ranks(tmp_path / "tokenizer.model", ranks))
