"""Annotations decide what the words of a command line become."""

from __future__ import annotations

from typing import Literal

import fire
import pytest

from llama.cli.typed import typed
from llama.errors import UsageError


@typed
def command(
    path: str,
    *texts: str,
    count: int = 0,
    share: float | None = None,
    size: int | Literal["auto"] | None = None,
    loud: bool = False,
    stats: bool | Literal["json"] = False,
    name: str | None = None,
) -> tuple[object, ...]:
    return path, texts, count, share, size, loud, stats, name


def read(*words: str) -> object:
    return fire.Fire(command, command=list(words), serialize=lambda result: None)


def test_text_stays_text() -> None:
    found = read("1", "2,3", "[x]", "--name", "7")
    assert found == ("1", ("2,3", "[x]"), 0, None, None, False, False, "7")


def test_numbers_switches_and_choices() -> None:
    words = ["--count", "3", "--share", ".5", "--size", "4", "--loud", "--stats", "json"]
    assert read("p", *words) == ("p", (), 3, 0.5, 4, True, "json", None)
    assert read("p", "--size=auto", "--stats", "--noloud") == (
        "p", (), 0, None, "auto", False, True, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "x"], "--count cannot be 'x'; it is a whole number"),
        (["--count", "1.5"], "--count cannot be '1.5'"),
        (["--share", "much"], "--share cannot be 'much'; it is a number"),
        (["--size", "big"], "it is a whole number or auto"),
        (["--loud", "3"], "it is a switch without a value"),
        (["--stats", "xml"], "a switch without a value or json"),
        (["--count"], "--count cannot be 'True'"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read("p", *words)
