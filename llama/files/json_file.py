"""One JSON object from a file that nobody vouches for: params.json, an index, a tokenizer.

Stricter than JSON: no duplicate keys, no NaN or infinity, a size limit. What the keys mean is not
known here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import CheckpointError
from llama.files.signature import accident, regular_file

MAX_BYTES = 1_000_000


def read_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in `path`. Raises CheckpointError that names the file and the fault."""
    size = regular_file(path)
    if size > max_bytes:
        raise CheckpointError(f"{path} has {size:,} bytes; at most {max_bytes:,} are plausible")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}") from error
    cause = accident(raw[:512])
    if cause is not None:
        raise CheckpointError(f"{path} ({size:,} bytes) is {cause}")
    return parse_object(raw, path)


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """The object that `raw`, a part of `path`, spells. Raises CheckpointError as read_object."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and integers of thousands of digits
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not an object of keys and values"
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice[:80]!r} is given twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large for a number")
    return value
