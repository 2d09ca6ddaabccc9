"""What the values of a configuration file may be, key by key. It knows no keys of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.wording import short
from llama.errors import CheckpointError


@dataclass(frozen=True)
class KeyTable:
    """Numbers have (smallest, largest) values; keys of `nullable` may be null as well."""

    integers: Mapping[str, tuple[int, int]]
    numbers: Mapping[str, tuple[float, float]]
    booleans: tuple[str, ...]
    nullable: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.integers, *self.numbers, *self.booleans, *self.texts)

    def checked(self, key: str, value: Any, path: Path) -> Any:
        """`value` when `key` may have it, numbers as int or float. Raises CheckpointError that
        names `path`, the file.
        """
        if value is None and key in self.nullable:
            return None
        if key in self.booleans or key in self.texts:
            kind, what = (bool, "true or false") if key in self.booleans else (str, "a name")
            if isinstance(value, kind):
                return value
            raise CheckpointError(f"{path}: {key} must be {what}, not {short(value)}")
        is_integer = key in self.integers
        low, high = self.integers[key] if is_integer else self.numbers[key]
        right_type = type(value) is int or (type(value) is float and not is_integer)
        if not right_type or not low <= value <= high:
            what = "an integer" if is_integer else "a number"
            raise CheckpointError(
                f"{path}: {key} must be {what} from {low:,} to {high:,}, not {short(value)}"
            )
        return int(value) if is_integer else float(value)
