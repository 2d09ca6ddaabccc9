"""From the words of a command line to a command, through fire. Nothing runs here."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import wraps
from typing import Any, Protocol

import fire
from fire.core import FireExit

from llama.errors import UnknownNameError, UsageError
from llama.registry import resolve

# fire ends a call at the word "-", which for us is a file; no word is an escape character.
_PLAIN = ("--", "--separator=\x1b")


class Command(Protocol):
    """What a command's function returns."""

    def run(self) -> None: ...


class _Sealed:
    """What fire gets for a command: it would take words that are left over for members of it."""

    def __dir__(self) -> list[str]:
        return []


def understand(commands: Mapping[str, str], words: Sequence[str]) -> Command:
    """The command that `words` describe. Raises UsageError for any word that it does not know."""
    name, *rest = words
    function = find(commands, name)
    if "--" in rest:  # fire would take what follows for options of its own, and ignore it
        raise UsageError(f"'--' has no meaning here; see: llama {name} --help")
    made: list[Command] = []

    @wraps(function)
    def make(*args: object, **options: object) -> _Sealed:
        made.append(function(*args, **options))
        return _Sealed()

    with redirect_stderr(io.StringIO()):  # fire prints its whole usage along with an error
        try:
            fire.Fire(make, command=[*rest, *_PLAIN], name=f"llama {name}", serialize=_nothing)
        except FireExit as end:
            fault = end.trace.elements[-1].ErrorAsStr()
            raise UsageError(f"{fault}; see: llama {name} --help") from None
    if len(made) != 1:
        raise UsageError(f"cannot understand {' '.join(rest)}; see: llama {name} --help")
    return made[0]


def find(commands: Mapping[str, str], name: str) -> Callable[..., Any]:
    """The function of the command `name`. Raises UnknownNameError."""
    try:
        function: Callable[..., Any] = resolve(commands, name, kind="command")
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; see: llama --help") from None
    return function


def _nothing(result: object) -> None:
    """fire prints what a command returns; ours is only read."""
