"""A dataclass among the parameters of a command stands for an option a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fire
import pytest

from llama.cli.help import help_text
from llama.cli.option_groups import grouped
from llama.cli.typed import typed
from llama.errors import UsageError


@dataclass(frozen=True)
class Size:
    """How large.

    Args:
        width: in metres
        depth: in fathoms
    """

    width: int = 3
    depth: float | None = None


@typed
@grouped
def command(path: str, *texts: str, size: Size, name: str | None = None) -> tuple[object, ...]:
    """Measure.

    Args:
        path: what to measure
        texts: what to say
        depth: in metres
        name: whose it is
    """
    return path, texts, size, name


def read(*words: str) -> Any:
    return fire.Fire(command, command=list(words), serialize=lambda result: None)


def test_fields_are_options() -> None:
    assert read("1", "2", "--width", "4", "--name", "x") == ("1", ("2",), Size(width=4), "x")
    assert read("1", "--depth=.5") == ("1", (), Size(depth=0.5), None)
    assert read("1") == ("1", (), Size(), None)


def test_fields_are_read_as_their_types_say() -> None:
    with pytest.raises(UsageError, match="--width cannot be 'x'; it is a whole number"):
        read("1", "--width", "x")


def test_the_group_itself_is_no_option() -> None:
    with pytest.raises(fire.core.FireExit):
        read("1", "--size", "3")


def test_help_describes_the_fields_and_the_command_has_the_last_word() -> None:
    lines = [line.split(maxsplit=1) for line in help_text(command, name="m").splitlines()]
    described = {line[0]: line[1] for line in lines if len(line) == 2}
    assert described["usage:"] == "llama m PATH TEXTS... [--option VALUE ...]"
    assert described["--width"] == "VALUE (default 3)  in metres"
    assert described["--depth"] == "VALUE              in metres"
    assert described["--name"] == "VALUE               whose it is"
