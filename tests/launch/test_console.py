"""The plain table is aligned text; rich draws it only on a terminal."""

from __future__ import annotations

import pytest

from launch import console


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
