"""What is the same in all JSON of tokenizers: the size that is plausible, and what can be an id."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

from llama.files import json_file

MAX_BYTES = 64 * 1024**2
"""Several times the largest vocabulary that Llama models come with."""


def read_object(path: str | PathLike[str]) -> dict[str, Any]:
    """The object in `path`. Raises CheckpointError that names the file and the fault."""
    return json_file.read_object(Path(path), max_bytes=MAX_BYTES)


def is_token_id(value: object) -> TypeGuard[int]:
    """Whether a value of such an object can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
