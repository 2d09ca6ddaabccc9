"""The plain table is aligned text; rich draws it only on a terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launch import console
from tests.helpers.programs import ROOT, environment


def test_plain_columns_are_aligned() -> None:
    text = console.plain_table("2 ranks", ["rank", "device"], [["0", "cpu"], ["10", "cuda:10"]])
    assert text == "launch: 2 ranks\n  rank  device\n  0     cpu\n  10    cuda:10\n"


def test_no_terminal_no_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_table("title", ["a"], [["b"]])
    assert capsys.readouterr().err == "launch: title\n  a\n  b\n"


def test_a_terminal_gets_a_drawn_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console.show_table("2 ranks", ["rank", "device"], [["0", "cpu"]])
    drawn = capsys.readouterr().err
    assert "2 ranks" in drawn and "device" in drawn and "─" in drawn


def test_closed_streams_lead_nowhere() -> None:
    """As under a daemon: else a store's connection would be stdout, and ranks print into it."""
    code = """
import os, sys
from launch import console
console.open_streams()
console.say("unheard")
print("unheard", flush=True)
nowhere = os.stat(os.devnull).st_rdev
is_there = [os.fstat(fd).st_rdev == nowhere and os.get_inheritable(fd) for fd in range(3)]
sys.exit(42 if all(is_there) and os.open(os.devnull, os.O_RDONLY) > 2 else 1)
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code],
        cwd=ROOT, env=environment({}), timeout=60,
    )  # fmt: skip
    assert done.returncode == 42
