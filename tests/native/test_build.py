"""Native code is compiled once, found again, and does without when it cannot be had."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llama.native.build import Recipe, cache_folder, load
from llama.native.compiler import Unavailable, find_compiler

ANSWER = "int answer(void) { return 42; }\n"


def have_compiler() -> bool:
    try:
        find_compiler("c")
    except Unavailable:
        return False
    return True


pytestmark = pytest.mark.skipif(not have_compiler(), reason="no C compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    source = tmp_path / "src"
    source.mkdir()
    (source / "answer.c").write_text(ANSWER)
    return Recipe("answer", "c", ("-O1", "-shared", "-fPIC"), source)


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def test_a_library_is_compiled_once(recipe: Recipe, cache: Path) -> None:
    assert load(recipe).answer() == 42
    (made,) = libraries(cache)
    before = made.stat().st_mtime_ns
    assert load(recipe).answer() == 42
    assert made.stat().st_mtime_ns == before


def test_another_source_header_or_flag_is_another_library(recipe: Recipe, cache: Path) -> None:
    load(recipe)
    (recipe.folder / "answer.c").write_text(ANSWER.replace("42", "43"))
    assert load(recipe).answer() == 43
    (recipe.folder / "words.h").write_text("/* new */\n")
    load(recipe)
    load(Recipe("answer", "c", (*recipe.flags, "-g"), recipe.folder))
    assert len(libraries(cache)) == 4


def test_sources_that_do_not_compile_are_a_reason(recipe: Recipe, cache: Path) -> None:
    (recipe.folder / "answer.c").write_text("int answer(void) { return nonsense; }\n")
    with pytest.raises(Unavailable, match=r"failed with status 1 .*nonsense"):
        load(recipe)
    assert libraries(cache) == []


def test_a_library_that_is_not_installed_is_named(recipe: Recipe, cache: Path) -> None:
    with pytest.raises(Unavailable, match=r"failed with status 1 .*find .*nonesuch"):
        load(Recipe("answer", "c", (*recipe.flags, "-lnonesuch"), recipe.folder))


def test_no_sources_and_no_compiler_are_reasons(
    recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -x")
    with pytest.raises(Unavailable, match=r"no C compiler \(\$CC is no-such-compiler"):
        load(recipe)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="install gcc or clang"):
        load(recipe)
    (recipe.folder / "answer.c").unlink()
    with pytest.raises(Unavailable, match="no sources"):
        load(recipe)


def test_a_damaged_library_does_no_harm(recipe: Recipe, cache: Path) -> None:
    load(recipe)
    (made,) = libraries(cache)
    made.unlink()
    made.write_bytes(b"not a library")
    assert load(recipe).answer() == 42


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_of_others_is_not_trusted(recipe: Recipe, cache: Path, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert cache_folder() is None
    assert load(recipe).answer() == 42
    assert libraries(cache) == []
    cache.chmod(0o700)
    assert cache_folder() == cache


def test_a_cache_that_cannot_be_made_is_done_without(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cache_folder() is None
    assert load(recipe).answer() == 42


RACE = """
import logging, sys
from pathlib import Path
from llama.native.build import Recipe, load
logging.basicConfig(level=logging.INFO)
recipe = Recipe("answer", "c", ("-O1", "-shared", "-fPIC"), Path(sys.argv[1]))
sys.exit(0 if load(recipe).answer() == 42 else 1)
"""


def test_of_several_processes_one_compiles(recipe: Recipe, cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "slow-cc"
    compiler.write_text(f'#!/bin/sh\necho one >> {tmp_path}/calls\nsleep 0.5\nexec cc "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-c", RACE, str(recipe.folder)]
    environ = {**os.environ, "CC": str(compiler)}
    processes = [subprocess.Popen(command, env=environ) for _ in range(3)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert (tmp_path / "calls").read_text() == "one\n"
    assert [path.suffix for path in cache.iterdir() if path.name != "lock"] == [".so"]


def test_it_can_be_turned_off() -> None:
    program = "from llama.native import library, why_not; print(library('shm'), why_not('shm'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LLAMA_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "None LLAMA_NATIVE=0\n", done.stderr


def test_both_libraries_of_the_package_can_be_had() -> None:
    from llama.native import library, why_not

    for name in ("shm", "math"):
        assert isinstance(library(name), ctypes.CDLL), why_not(name)
        assert why_not(name) == ""


def test_the_command_says_what_there_is() -> None:
    words = [sys.executable, "-m", "llama.native"]
    environ = {**os.environ, "LLAMA_NATIVE": "0"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "shm: LLAMA_NATIVE=0\nmath: LLAMA_NATIVE=0\n", done.stderr
