"""Options that several commands have: a dataclass of them, taken as one parameter.

How words become values, and what the options mean, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from typing import Any, TypeVar, get_type_hints

_Result = TypeVar("_Result")
_SECTION = "\nArgs:\n"


def grouped(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Have `function` take an option for each field of its parameters that are dataclasses.

    A decorator, to be applied before `typed`. All fields need defaults. The `Args:` of a
    dataclass describe its fields; those of `function`, which has the last word, may do so as well.
    """
    hints = get_type_hints(function)
    parameters = signature(function).parameters
    groups = {name: hints[name] for name in parameters if is_dataclass(hints[name])}

    @wraps(function)
    def flat(*args: Any, **options: Any) -> _Result:
        for name, group in groups.items():
            names = [field.name for field in fields(group) if field.name in options]
            options[name] = group(**{field: options.pop(field) for field in names})
        return function(*args, **options)

    listed: list[Parameter] = []
    for name, parameter in parameters.items():
        own = parameter.replace(annotation=hints[name])
        listed += _options(groups[name]) if name in groups else [own]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    flat.__doc__ = _described(function, groups.values())
    flat.__signature__ = Signature(listed)  # type: ignore[attr-defined]
    return flat


def _options(group: type[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(group)
    for field in fields(group):
        hint = hints[field.name]
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hint)


def _described(function: Callable[..., Any], groups: Iterable[type[Any]]) -> str:
    summary, _, own = (getdoc(function) or "").partition(_SECTION)
    shared = [(getdoc(group) or "").partition(_SECTION)[2] for group in groups]
    return "\n".join([summary + _SECTION, *shared, own])
