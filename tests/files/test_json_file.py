"""JSON from an untrusted file: what is stricter than JSON, and what is no JSON at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama.errors import CheckpointError
from llama.files.json_file import read_object

BAD_FILES = {
    "duplicate key": (b'{"dim": 1, "dim": 2}', "key 'dim' is given twice"),
    "duplicate key inside": (b'{"a": {"b": 1, "b": 1}}', "key 'b' is given twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "Infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "overflow": (b'{"a": 1e400}', "1e400 is too large"),
    "endless integer": (b'{"a": ' + b"9" * 9000 + b"}", "not valid JSON"),
    "a list": (b"[1, 2]", "holds a list, not an object"),
    "a number": (b"7", "holds a int, not an object"),
    "cut off": (b'{"dim": 40', "not valid JSON"),
    "no UTF-8": (b'{"dim": "\xff"}', "not valid JSON"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep and cut off": (b"[" * 900_000, "nested too deeply"),
    "large": (b" " * 1_000_001, "has 1,000,001 bytes; at most 1,000,000"),
    "empty": (b"", "(0 bytes) is empty"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "an HTML page"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "params.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_object(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_many_keys_with_a_late_duplicate_do_not_take_long(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    pairs = [f'"{number}":0' for number in range(100_000)]
    path.write_text("{" + ",".join([*pairs, pairs[-1]]) + "}")
    with pytest.raises(CheckpointError, match="'99999' is given twice"):
        read_object(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"params\.json: No such file"):
        read_object(tmp_path / "params.json")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_object(tmp_path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text('{"dim": 1, "deep": {"a": [1.5, null, true]}, "n": "ü"}', encoding="utf-8")
    assert read_object(path) == {"dim": 1, "deep": {"a": [1.5, None, True]}, "n": "ü"}
