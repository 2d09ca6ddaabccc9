"""Which ids begin and end a text, from files that may be missing, old, or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.errors import CheckpointError
from llama.tokenizer.roles import Roles, read_roles
from tests.helpers.library_files import write_json

IDS = {"<s>": 1, "</s>": 2, "<eot>": 3, "a": 4}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def roles(folder: Path, *, default: str | None = None, **files: Any) -> Roles:
    """From the files given, by name without ".json"."""
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)
    return read_roles(folder, IDS, n_words=5, default=default)


def test_names_go_before_ids(tmp_path: Path) -> None:
    found = roles(
        tmp_path,
        tokenizer_config={"bos_token": {"content": "<s>", "special": True}, "eos_token": "<eot>"},
        special_tokens_map={"eos_token": "a"},
        config={"bos_token_id": 4, "eos_token_id": 4},
        generation_config={"bos_token_id": 4, "eos_token_id": [2, 3]},
    )
    assert (found.bos_id, found.eos_id, found.stop_tokens) == (1, 3, {2, 3})
    assert {Path(path).name for path in found.files} == {
        "tokenizer_config.json",
        "special_tokens_map.json",
        "config.json",
        "generation_config.json",
    }


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize("nothing", [{}, {"bos_token": "", "eos_token": None}])
def test_ids_where_nobody_names_them(tmp_path: Path, name: str, nothing: dict[str, Any]) -> None:
    """Early conversions of Llama have empty names."""
    files = {"tokenizer_config": nothing, name: {"bos_token_id": 1, "eos_token_id": [2, 3]}}
    found = roles(tmp_path, **files)
    assert (found.bos_id, found.eos_id, found.stop_tokens) == (1, 2, {2, 3})


def test_further_ends_are_the_generation_configs(tmp_path: Path) -> None:
    found = roles(
        tmp_path,
        special_tokens_map=NAMES,
        generation_config={"eos_token_id": 2},
        config={"eos_token_id": 4},
    )
    assert found.stop_tokens == {2}


def test_a_default_where_no_file_says_anything(tmp_path: Path) -> None:
    assert roles(tmp_path, default="a") == Roles(4, 4, frozenset({4}), None, ())
    for default in (None, "not in the vocabulary"):
        with pytest.raises(CheckpointError, match=r"says which token is bos: give bos_token in"):
            roles(tmp_path, default=default)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("tokenizer_config", "bos_token", 1, "bos_token must be a text, got 1"),
        ("tokenizer_config", "eos_token", {"content": 2}, "eos_token must be a text"),
        ("special_tokens_map", "eos_token", "<end>", "'<end>' is no token of the vocabulary"),
        ("config", "eos_token_id", 5, "must be ids from 0 to 4, got 5"),
        ("config", "eos_token_id", -1, "must be ids from 0 to 4, got -1"),
        ("generation_config", "eos_token_id", [2, True], "must be ids from 0 to 4"),
        ("generation_config", "bos_token_id", "1", "must be ids from 0 to 4, got '1'"),
        ("generation_config", "eos_token_id", 2.0, "must be ids from 0 to 4, got 2.0"),
    ],
)
def test_other_types_are_refused(
    tmp_path: Path, name: str, key: str, value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        roles(tmp_path, **{"special_tokens_map": NAMES, name: {**NAMES, key: value}})
    assert f"{name}.json" in str(caught.value)
