"""`Tokenizer(path)` finds the right kind by content, and says what a wrong file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llama.errors import CheckpointError, UsageError
from llama.tokenizer import Tokenizer
from llama.tokenizer.sentencepiece import SentencePieceTokenizer
from llama.tokenizer.tiktoken import TiktokenTokenizer
from tests.helpers.library_files import write_gpt2
from tests.helpers.tokenizers import write_sentencepiece, write_tiktoken


def test_kind_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    spm = Tokenizer(str(write_sentencepiece(tmp_path / "a.tiktoken")))
    bpe = Tokenizer(model_path=write_tiktoken(tmp_path / "tokenizer.model"))
    assert type(spm) is SentencePieceTokenizer
    assert type(bpe) is TiktokenTokenizer
    assert isinstance(spm, Tokenizer) and isinstance(bpe, Tokenizer)
    assert spm.model_path == str(tmp_path / "a.tiktoken")


def test_a_kind_can_be_named_and_rejects_the_other(tmp_path: Path) -> None:
    spm = write_sentencepiece(tmp_path / "spm.model")
    bpe = write_tiktoken(tmp_path / "bpe.model")
    assert SentencePieceTokenizer(spm).n_words == 400
    with pytest.raises(CheckpointError, match=r"bpe\.model is not a whole SentencePiece model"):
        SentencePieceTokenizer(bpe)
    with pytest.raises(CheckpointError, match=r"spm\.model line 1 is not"):
        TiktokenTokenizer(spm)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (b"\n\n<!DOCTYPE html><html>", "it is an HTML page"),
        (b"#version: 0.2\n", r"give the vocab\.json that lies beside it"),
        (b'{"version": "1.0"}', r'is no tokenizer\.json: it has no section "model"'),
        (b"PK\x03\x04\x00\x00", r"it starts with b'PK"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_path_that_cannot_be_opened_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.model: No such file"):
        Tokenizer(tmp_path / "nowhere.model")
    with pytest.raises(CheckpointError, match="no tokenizer found"):
        Tokenizer(tmp_path)
    os.mkfifo(tmp_path / "pipe.model")
    with pytest.raises(CheckpointError, match=r"pipe\.model is not a regular file"):
        Tokenizer(tmp_path / "pipe.model")
    with pytest.raises(CheckpointError, match="embedded null byte"):
        Tokenizer("a\0b")


def test_only_integers_are_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    hi = tokenizer.encode("hi", False, False)
    assert tokenizer.decode(torch.tensor(hi)) == "hi"  # type: ignore[arg-type]
    for wrong in ([5.7], 5.7, "12", None):
        with pytest.raises(UsageError, match="token ids must be integers, got "):
            tokenizer.decode(wrong)  # type: ignore[arg-type]


def test_a_prompt_begins_with_bos_where_the_model_expects_it(tmp_path: Path) -> None:
    spm = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    gpt2 = Tokenizer(write_gpt2(tmp_path))
    assert spm.encode_prompt("hi") == spm.encode("hi", True, False)
    assert gpt2.encode_prompt("hi") == gpt2.encode("hi", False, False)
    assert gpt2.encode_prompt("") == [gpt2.bos_id]
