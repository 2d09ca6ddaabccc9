"""A program that is not there is refused before any rank starts, and none is run to find out."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.program import check_program
from llama.errors import UsageError
from tests.helpers.programs import run


@pytest.mark.parametrize(
    "program",
    [
        ("script.py", "--x"),
        ("-m", "module"),
        ("-m", "package.inner"),
        ("-m", "package"),
        ("-m", "json.tool"),
        ("-m", "namespace.nested.module"),
    ],
)
def test_what_is_there_may_run(
    program: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "namespace" / "nested").mkdir(parents=True)
    names = ("script", "module", "package/__init__", "package/inner", "package/__main__")
    for name in (*names, "namespace/nested/module"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    check_program(program)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (("tests",), r"tests is a folder without __main__\.py"),
        (("nowhere.py",), r"cannot find the program nowhere\.py \(in "),
        (("-m", "no_such_module"), "cannot find the module no_such_module"),
        (("-m", "llama.nowhere"), r"cannot find the module llama\.nowhere"),
        (("-m", "llama.errors.more"), "cannot find the module"),
        (("-m", "llama.checkpoint"), "llama.checkpoint is a package without __main__"),
        (("-m", ""), "cannot find the module"),
    ],
)
def test_what_is_not_there_is_named(program: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_program(program)


def test_the_launcher_says_it_in_one_line() -> None:
    done = run(["-m", "launch", "--nproc", "2", "nowhere.py"])
    assert done.returncode == 64
    (line,) = done.stderr.splitlines()
    assert line.startswith("launch: error: cannot find the program nowhere.py")
