"""From what a user wrote to a LinearMethod: "int8", or "int4:64" with a group size."""

from __future__ import annotations

from llama.errors import UsageError
from llama.quant import QUANT
from llama.quant.base import DENSE, LinearMethod
from llama.registry import resolve


def linear_method(wish: str | None) -> LinearMethod:
    """What `wish`, a name in QUANT with or without ":" and a group size, stands for; None is plain.

    Raises UnknownNameError that lists the known names, UsageError for a group size that is none.
    """
    if wish is None:
        return DENSE
    if not isinstance(wish, str):
        raise UsageError(f"quantize must be a name such as int8 or int8:64, got {wish!r}")
    name, colon, digits = wish.partition(":")
    make = resolve(QUANT, name, kind="quantisation")
    if colon and not (digits.isascii() and digits.isdigit()):
        raise UsageError(
            f"quantize {wish!r} has no number after the colon; a group size is one, as in {name}:64"
        )
    method: LinearMethod = make(int(digits) if colon else None)
    return method
