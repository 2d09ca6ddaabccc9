"""Which ids begin and end a text, as the files beside a Hugging Face tokenizer say.

tokenizer_config.json and special_tokens_map.json name tokens; generation_config.json and the
model's config.json have their ids. Every one may be missing, and nobody vouches for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import CheckpointError
from llama.tokenizer.json_file import is_token_id, read_object

_FILES_OF_NAMES = ("tokenizer_config.json", "special_tokens_map.json")
_FILES_OF_IDS = ("generation_config.json", "config.json")


@dataclass(frozen=True)
class Roles:
    """`adds_bos` is None where nothing is said of it; `files` are the paths of what was read."""

    bos_id: int
    eos_id: int
    stop_tokens: frozenset[int]
    adds_bos: bool | None
    files: tuple[str, ...]


def read_roles(
    folder: Path, ids: Mapping[str, int], *, n_words: int, default: str | None = None
) -> Roles:
    """Roles from the files in `folder`, for a tokenizer with these `ids` by name.

    A name goes before an id, and `default` is the name where nobody says anything. Further ends of
    an answer (Llama 3 has three) are in generation_config.json, else in config.json.

    Raises CheckpointError for a file with other types, a token that does not exist, and when no
    file says which tokens they are.
    """
    paths = [folder / name for name in (*_FILES_OF_NAMES, *_FILES_OF_IDS)]
    opened = {path: read_object(path) for path in paths if path.is_file()}
    named = [path for path in opened if path.name in _FILES_OF_NAMES]
    numbered = [path for path in opened if path.name in _FILES_OF_IDS]
    first: dict[str, int] = {}
    ends: list[int] = []
    for role in ("bos", "eos"):
        of_names = [_ids_by_name(path, opened[path], role, ids) for path in named]
        of_ids = [_ids_by_id(path, opened[path], role, n_words) for path in numbered]
        last_resort = [ids[default]] if default is not None and default in ids else []
        found = [chosen for chosen in (*of_names, *of_ids, last_resort) if chosen]
        if not found:
            raise CheckpointError(
                f"no file in {folder} says which token is {role}: give {role}_token in "
                f"tokenizer_config.json or {role}_token_id in config.json"
            )
        first[role] = found[0][0]
        ends = next((chosen for chosen in of_ids if chosen), [])
    return Roles(
        bos_id=first["bos"],
        eos_id=first["eos"],
        stop_tokens=frozenset({first["eos"], *ends}),
        adds_bos=_adds_bos(opened),
        files=tuple(map(str, opened)),
    )


def _adds_bos(opened: Mapping[Path, Mapping[str, Any]]) -> bool | None:
    for path, settings in opened.items():
        value = settings.get("add_bos_token") if path.name == "tokenizer_config.json" else None
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{path}: add_bos_token must be true or false, got {value!r:.80}")
        if value is not None:
            return value
    return None


def _ids_by_name(
    path: Path, settings: Mapping[str, Any], role: str, ids: Mapping[str, int]
) -> list[int]:
    key = f"{role}_token"
    token = settings.get(key)
    if isinstance(token, dict):  # an AddedToken, with its flags
        token = token.get("content")
    if token in (None, ""):  # some early conversions of Llama have empty names
        return []
    if not isinstance(token, str):
        raise CheckpointError(f"{path}: {key} must be a text, got {settings[key]!r:.80}")
    if token not in ids:
        raise CheckpointError(f"{path}: {key} {token[:80]!r} is no token of the vocabulary")
    return [ids[token]]


def _ids_by_id(path: Path, settings: Mapping[str, Any], role: str, n_words: int) -> list[int]:
    key = f"{role}_token_id"
    value = settings.get(key)
    if value is None:
        return []
    found: list[Any] = value if isinstance(value, list) else [value]
    if not all(is_token_id(token_id) and token_id < n_words for token_id in found):
        raise CheckpointError(
            f"{path}: {key} must be ids from 0 to {n_words - 1}, got {value!r:.80}"
        )
    return found
