"""vocab.json and merges.txt: the pair, its faults, and the file whose name is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import CheckpointError
from llama.tokenizer import Tokenizer
from llama.tokenizer.gpt2 import parse_merges
from tests.helpers.library_files import read_json, write_gpt2, write_json


@pytest.mark.parametrize("prefix", ["", "gpt2-"])
def test_the_merges_lie_beside_the_vocabulary(tmp_path: Path, prefix: str) -> None:
    path = write_gpt2(tmp_path, prefix=prefix)
    assert Tokenizer(path).files == (str(path), str(tmp_path / f"{prefix}merges.txt"))
    (tmp_path / f"{prefix}merges.txt").unlink()
    with pytest.raises(CheckpointError, match=rf"cannot open .*/{prefix}merges\.txt"):
        Tokenizer(path)


def test_the_order_of_the_merges_is_what_counts(tmp_path: Path) -> None:
    path = write_gpt2(tmp_path)
    vocabulary = read_json(path)
    number = max(vocabulary.values())
    pairs = ["x y", "y z", "xy z", "x yz"]
    write_json(path, vocabulary | {p.replace(" ", ""): number + i for i, p in enumerate(pairs, 1)})
    for merges, pieces in (("x y\ny z\n", ["xy", "z"]), ("y z\nx y\n", ["x", "yz"])):
        (tmp_path / "merges.txt").write_text(merges)
        tokenizer = Tokenizer(path)
        ids = tokenizer.encode("xyz", False, False)
        assert [tokenizer.token_bytes(token_id).decode() for token_id in ids] == pieces


def test_files_beside_it_may_name_other_ends(tmp_path: Path) -> None:
    path = write_gpt2(tmp_path)
    write_json(tmp_path / "config.json", {"bos_token_id": 5, "eos_token_id": 6})
    tokenizer = Tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (5, 6, {6})


def test_merges_are_read_as_they_are_written() -> None:
    data = "#version: 0.2\nĠ t\r\n# #version\n\n\x85 é\n".encode()
    assert parse_merges(data, name="m") == [("Ġ", "t"), ("#", "#version"), ("\x85", "é")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#version: 0.2\na b\nab\n", "line 3 is not two pieces: 'ab'"),
        (b"a b c\n", "line 1 is not two pieces: 'a b c'"),
        (b" b\n", "line 1 is not two pieces"),
        (b"\xff b\n", "is not UTF-8"),
    ],
)
def test_a_line_that_is_no_pair_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"merges.txt {message}"):
        parse_merges(data, name="merges.txt")


def test_faults_of_the_vocabulary_are_named(tmp_path: Path) -> None:
    path = write_gpt2(tmp_path)
    vocabulary = read_json(path)
    for changed, message in (
        ({**vocabulary, "x": "5"}, r"vocab\.json: token 'x' has the id '5'"),
        ({**vocabulary, "x": vocabulary["y"]}, "gives one id to several tokens"),
        ({"a": 0}, r"merges\.txt does not belong to .*vocab\.json"),
    ):
        write_json(path, changed)
        with pytest.raises(CheckpointError, match=message):
            Tokenizer(path)
    write_json(path, {name: number for name, number in vocabulary.items() if name != "z"})
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="has no token for byte 0x7a"):
        Tokenizer(path)
