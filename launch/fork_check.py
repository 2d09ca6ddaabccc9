"""Whether ranks may be copies of this process, or each needs an interpreter of its own.

A copy has what this process was started with; where a new one would differ, it is not made.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from launch import env
from launch.fresh import OWN_PACKAGES, first_path

_PLACEMENT = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""OpenMP looks at these, and at the cores it may use, when it is loaded."""
_CARRIED = ("-O", "-OO", "-u")
"""Options of this interpreter that ranks get as well."""


def why_not(program: Sequence[str], environ: Mapping[str, str]) -> str:
    """Why `program` cannot run in copies of this process, which have `environ`; "" if it can.

    torch has been imported by now.
    """
    if sys.platform != "linux":
        return "not on Linux"
    if os.environ.get(env.FORK) == "0":
        return f"{env.FORK} is 0"
    if threading.active_count() > 1 or sys.gettrace() or sys.getprofile():
        return "threads or a debugger run here"
    if len(os.listdir("/proc/self/task")) > _threads_that_may_be(environ):
        return "a pool of threads runs here, which a copy would wait for"
    if option := _interpreter_option():
        return f"this interpreter was started with {option}"
    if name := next((name for name in _PLACEMENT if name in environ), None):
        return f"{name} places threads"
    if problem := _threads_differ(environ):
        return problem
    if _has_own_start():
        return "a sitecustomize module runs in every interpreter"
    return _program_problem(program)


def _threads_that_may_be(environ: Mapping[str, str]) -> int:
    """OpenBLAS, which numpy loads, has a pool from the beginning, and ends it before a fork."""
    if "openblas" not in Path("/proc/self/maps").read_text():
        return 1
    given = environ.get("OPENBLAS_NUM_THREADS") or environ.get(env.THREADS, "")
    return int(given) if given.isdecimal() else 1


def _interpreter_option() -> str:
    for word in sys.orig_argv[1:]:
        if not word.startswith("-") or word in ("-m", "-c"):
            break
        if word not in _CARRIED:
            return word
    return ""


def _threads_differ(environ: Mapping[str, str]) -> str:
    import torch

    n_threads = environ.get(env.THREADS)
    if n_threads != str(torch.get_num_threads()):
        return f"torch has been imported for {torch.get_num_threads()} threads, not {n_threads}"
    return ""


def _has_own_start() -> bool:
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    files = [
        getattr(sys.modules.get(name), "__file__", None)
        for name in ("sitecustomize", "usercustomize")
    ]
    return any(file and Path(file).absolute().parent != standard for file in files)


def _program_problem(program: Sequence[str]) -> str:
    kind = program[0]
    if kind.endswith(".pyc"):
        return "the program is compiled"
    if kind == "-m":
        loaded = sys.modules.get(program[1])
        if loaded is not None and not hasattr(loaded, "__path__"):
            return f"{program[1]} has been imported here"
    folder = first_path(program) or os.getcwd()
    if name := _shadowed(folder):
        return f"{folder} has another module {name}"
    return ""


def _shadowed(folder: str) -> str:
    """An imported module that a program beside which `folder` is would find there instead."""
    try:
        entries = {entry.partition(".")[0] for entry in os.listdir(folder)}
    except OSError:  # a zip file
        return ""
    for name in entries.intersection(sys.modules).difference(("__main__", *OWN_PACKAGES)):
        spec = PathFinder.find_spec(name, [folder])
        own = getattr(sys.modules[name], "__spec__", None)
        if spec is not None and spec.origin and (own is None or own.origin != spec.origin):
            return name
    return ""
