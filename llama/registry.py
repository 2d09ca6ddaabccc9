"""One door for extension: plain dicts of "module:attribute" strings, resolved on first use.

A registry is `{"name": "llama.ops.attention.sdpa:attention"}`; the module is imported only when its
name is asked for, so listing names costs nothing and an optional package is needed only by its
users.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from llama.errors import UnknownNameError


def resolve(registry: Mapping[str, str], name: str, *, kind: str) -> Any:
    """The object that `name` stands for; `kind` is the noun used in the error ("attention
    backend").

    Raises UnknownNameError that lists the known names.
    """
    target = registry.get(name)
    if target is None:
        known = ", ".join(sorted(registry))
        raise UnknownNameError(f"unknown {kind} {name!r}; known: {known}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
