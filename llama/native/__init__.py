"""Native code of this package, compiled on first use: `library("shm")`, `library("math")`.

Knows where the sources are and how they are compiled, not what they compute: whoever calls a
function binds its types, and has a path of its own for when there is no library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Literal

from llama.native.build import Recipe, load
from llama.native.compiler import Unavailable

LibraryName = Literal["shm", "math"]
TURNED_OFF = "LLAMA_NATIVE=0"
"""The answer of `why_not` where nobody wants native code."""

_SOURCES = Path(__file__).parent / "src"
_COMMON = ("-O3", "-march=native", "-shared", "-fPIC")
_RECIPES = {
    "shm": Recipe("shm", "c", (*_COMMON, "-std=gnu11"), _SOURCES),
    "math": Recipe(
        "math",
        "c++",
        # not -ffast-math: a NaN must stay one
        (*_COMMON, "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"),
        _SOURCES,
    ),
}


def library(name: LibraryName) -> ctypes.CDLL | None:
    """The compiled library, from the cache or made now (seconds); None when it cannot be had.

    `LLAMA_NATIVE=0` turns all of them off. The answer holds for the life of the process.
    """
    return _attempt(name)[0]


def why_not(name: LibraryName) -> str:
    """Why `library(name)` is None, in words that name the way out; empty when it is there."""
    return _attempt(name)[1]


@functools.cache
def _attempt(name: LibraryName) -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("LLAMA_NATIVE", "1") == "0":
        return None, TURNED_OFF
    if name == "math":
        import torch  # noqa: F401 - its OpenMP must be the one that the library finds loaded
    try:
        return load(_RECIPES[name]), ""
    except Unavailable as error:
        return None, str(error)
