"""Whether the program that ranks would run is there, found out without running any of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from llama.errors import UsageError


def check_program(program: Sequence[str]) -> None:
    """Raises UsageError when ("script.py", ...) or ("-m", "module", ...) cannot be found.

    ("-c", "code", ...) is its own program.
    """
    if program[0] == "-c":
        return
    if program[0] != "-m":
        if not Path(program[0]).exists():
            raise UsageError(f"cannot find the program {program[0]} (in {Path.cwd()})")
        if Path(program[0]).is_dir() and not Path(program[0], "__main__.py").exists():
            raise UsageError(f"{program[0]} is a folder without __main__.py, which cannot be run")
        return
    name = program[1]
    spec = _find(name)
    if spec is None:
        raise UsageError(f"cannot find the module {name}; check its name and PYTHONPATH")
    if spec.submodule_search_locations is not None and _find(f"{name}.__main__") is None:
        raise UsageError(f"{name} is a package without __main__, which cannot be run")


def _find(name: str) -> ModuleSpec | None:
    """Where `python -m name` would find it. Parent packages are looked through, not imported."""
    top, *rest = name.split(".")
    try:
        spec = PathFinder.find_spec(top, [os.getcwd()]) or find_spec(top)
    except ValueError:  # "" or "__main__"
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # under its last name alone: a full one asks for its parents among the imported modules
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec
