"""What the words of a command line become: the type that the command's signature declares.

It knows annotations and fire's hooks; no command is known here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fire.decorators import SetParseFn, SetParseFns

from llama.errors import UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SWITCH = {"True": True, "False": False}  # fire's words for --name and --noname


def typed(function: _Function) -> _Function:
    """Have fire read every option of `function` as its annotation says; a decorator.

    Left alone fire guesses, and the prompt `1,2` or `[x]` would be no text. Understood are str,
    int, float, bool (a switch), Literal, and unions of them with None. What does not fit raises
    UsageError when the words are read.
    """
    hints = get_type_hints(function)
    named = [
        name
        for name, parameter in signature(function).parameters.items()
        if parameter.kind is not Parameter.VAR_POSITIONAL
    ]
    SetParseFn(str)(function)
    SetParseFns(**{name: _parser(name, hints[name]) for name in named})(function)
    return function


def _parser(name: str, hint: Any) -> Callable[[str], object]:
    choices = _choices(hint)

    def parse(text: str) -> object:
        for choice in choices:
            try:
                return choice(text)
            except (KeyError, ValueError):
                continue
        raise UsageError(f"--{name} cannot be {text!r}; it is {_expected(hint)}")

    return parse


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union without None; of anything else itself."""
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    return tuple(member for member in get_args(hint) if member is not type(None))


def _choices(hint: Any) -> list[Callable[[str], object]]:
    """What to try, in order: `str` takes anything, so it is last."""
    found: list[Callable[[str], object]] = []
    for member in sorted(_members(hint), key=lambda member: member is str):
        if get_origin(member) is Literal:
            found.append({text: text for text in get_args(member)}.__getitem__)
        elif member is bool:
            found.append(_SWITCH.__getitem__)
        else:
            assert member in (str, int, float), member
            found.append(member)
    return found


def _expected(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "a switch without a value"}
    texts: list[str] = []
    for member in _members(hint):
        literals = get_args(member) if get_origin(member) is Literal else ()
        texts.extend(literals or [names[member]])
    return " or ".join(texts)
