"""One JSON object from a tokenizer's file, which nobody vouches for. It knows ids but no keys.

Stricter than JSON: no duplicate keys, no NaN, a size limit.
"""

from __future__ import annotations

import json
from os import PathLike, fspath
from typing import Any, NoReturn, TypeGuard

from llama.errors import CheckpointError
from llama.tokenizer.base import read_tokenizer_file

MAX_BYTES = 64 * 1024**2
"""Several times the largest vocabulary that Llama models come with."""


def read_object(path: str | PathLike[str]) -> dict[str, Any]:
    """The object in `path`. Raises CheckpointError that names the file and the fault."""
    name = fspath(path)
    raw = read_tokenizer_file(path, limit=MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise CheckpointError(f"{name} has more than the {MAX_BYTES:,} bytes that are plausible")
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise CheckpointError(f"{name} is nested too deeply for a tokenizer's file") from None
    except ValueError as error:  # also UnicodeDecodeError and integers of thousands of digits
        raise CheckpointError(f"{name} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{name} holds a {type(value).__name__}, not an object of keys and values"
        )
    return value


def is_token_id(value: object) -> TypeGuard[int]:
    """Whether a value of such an object can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
