"""The C or C++ compiler of this machine, and one call of it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Language = Literal["c", "c++"]

_CANDIDATES: dict[Language, tuple[str, ...]] = {
    "c": ("cc", "gcc", "clang"),
    "c++": ("c++", "g++", "clang++"),
}
_VARIABLES: dict[Language, str] = {"c": "CC", "c++": "CXX"}
_PATIENCE_S = 300.0
_MAX_WORDS = 300


class Unavailable(Exception):
    """Native code cannot be had here; the message says why. Never leaves this package."""


@dataclass(frozen=True)
class Compiler:
    """`command` is what is called, with the words that $CC or $CXX has after the program."""

    command: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Changes when another version is installed; the file's date costs no process."""
        path = Path(self.command[0]).resolve()
        stat = path.stat()
        return f"{path} {stat.st_size} {stat.st_mtime_ns} {' '.join(self.command[1:])}"

    def compile(self, sources: Sequence[Path], flags: Sequence[str], target: Path) -> None:
        """One call. Raises Unavailable with the compiler's first error."""
        command = [*self.command, *flags, "-o", str(target), *map(str, sources)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"cannot run {self.command[0]} ({error})") from error
        if done.returncode != 0:
            raise Unavailable(
                f"{self.command[0]} failed with status {done.returncode} "
                f"({_complaint(done.stderr)})"
            )


def find_compiler(language: Language) -> Compiler:
    """$CC or $CXX, else the first one on the PATH. Raises Unavailable."""
    variable = _VARIABLES[language]
    chosen = shlex.split(os.environ.get(variable, ""))
    for program, *words in [chosen] if chosen else [[name] for name in _CANDIDATES[language]]:
        path = shutil.which(program)
        if path is not None:
            return Compiler((path, *words))
    tried = f"${variable} is {chosen[0]}" if chosen else ", ".join(_CANDIDATES[language])
    raise Unavailable(f"no {language.upper()} compiler ({tried}: not found); install gcc or clang")


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    signs = ("error", "cannot find")  # the linker's word for a library that is not installed
    errors = [line for line in lines if any(sign in line.lower() for sign in signs)]
    return (errors or lines or ["it said nothing"])[0][:_MAX_WORDS]
