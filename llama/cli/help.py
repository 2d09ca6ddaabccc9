"""`llama COMMAND --help`: a command's signature and docstring as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import Parameter, getdoc, signature
from typing import Any, get_args, get_type_hints

_ARGUMENT = re.compile(r"    (\w+): (.+)")


def help_text(function: Callable[..., Any], *, name: str) -> str:
    """Usage, what the command does, and one line for each argument and option."""
    summary, _, section = (getdoc(function) or "").partition("\nArgs:\n")
    texts = _described(section)
    parameters = signature(function).parameters.values()
    hints = get_type_hints(function)
    positional = [_positional(p) for p in parameters if not _is_option(p)]
    left = {p.name: _option(p, hints[p.name]) if _is_option(p) else _positional(p)
            for p in parameters}  # fmt: skip
    width = max(len(entry) for entry in left.values())
    lines = [f"  {left[key]:{width}}  {texts.get(key, '')}".rstrip() for key in left]
    usage = " ".join(["usage: llama", name, *positional, "[--option VALUE ...]"])
    return "\n".join([usage, "", summary.strip(), "", *lines])


def _described(section: str) -> dict[str, str]:
    """Argument -> its text, of a docstring's `Args:`; longer ones go on in lines further in."""
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := _ARGUMENT.fullmatch(line):
            name = match[1]
            texts[name] = match[2]
        elif name and line.strip():
            texts[name] += f" {line.strip()}"
    return texts


def _is_option(parameter: Parameter) -> bool:
    return parameter.default is not Parameter.empty or parameter.kind is Parameter.KEYWORD_ONLY


def _positional(parameter: Parameter) -> str:
    rest = "..." if parameter.kind is Parameter.VAR_POSITIONAL else ""
    return f"{parameter.name.upper()}{rest}"


def _option(parameter: Parameter, hint: Any) -> str:
    """`--name`, and what is taken when it is not given."""
    default = parameter.default
    if hint is bool or bool in get_args(hint):
        return f"--{parameter.name}"
    known = "" if default in (None, Parameter.empty) else f" (default {default})"
    return f"--{parameter.name} VALUE{known}"
