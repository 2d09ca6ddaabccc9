"""A library from its sources, compiled at most once per machine and version of anything it needs.

The file's name in the cache is a hash of all that went into it, so nothing in there is ever out
of date, and hosts of different kinds can share one.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llama.log import get_logger
from llama.native.compiler import Compiler, Language, Unavailable, find_compiler

_LOCK_PATIENCE_S = 300.0
_POLL_S = 0.05
_CPU_WORDS = ("flags", "Features", "model name", "CPU part", "CPU implementer")
_SUFFIXES: dict[Language, str] = {"c": ".c", "c++": ".cpp"}


@dataclass(frozen=True)
class Recipe:
    """The library `name`: every file of `language` in `folder`, compiled in one call."""

    name: str
    language: Language
    flags: tuple[str, ...]
    folder: Path

    @property
    def sources(self) -> list[Path]:
        return sorted(self.folder.glob("*" + _SUFFIXES[self.language]))

    @property
    def headers(self) -> list[Path]:
        return sorted(self.folder.glob("*.h"))


def load(recipe: Recipe) -> ctypes.CDLL:
    """The library, from the cache or compiled now. Raises Unavailable."""
    if not recipe.sources:
        raise Unavailable(f"no sources in {recipe.folder}")
    compiler = find_compiler(recipe.language)
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError):  # full, read-only after all, or mounted noexec
            return _load_cached(recipe, compiler, folder)
    folder = Path(tempfile.mkdtemp(prefix="llama-native-"))
    try:
        return _load_cached(recipe, compiler, folder)
    except OSError as error:
        raise Unavailable(f"cannot load what was compiled in {folder} ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it stays mapped


def cache_folder() -> Path | None:
    """$LLAMA_CACHE_DIR, $XDG_CACHE_HOME/llama or ~/.cache/llama; None when that is of no use.

    What lies in there is executed: a folder that others can write to is of no use.
    """
    named = os.environ.get("LLAMA_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named) if named else Path(base) / "llama"
    try:
        folder = folder.resolve() / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_ours = status.st_uid in (0, os.getuid())
    is_open = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return folder if is_ours and not is_open and os.access(folder, os.W_OK | os.X_OK) else None


def _load_cached(recipe: Recipe, compiler: Compiler, folder: Path) -> ctypes.CDLL:
    """Raises OSError when `folder` cannot hold it or it cannot be loaded from there."""
    target = folder / f"{recipe.name}-{_key(recipe, compiler)}.so"
    if not target.exists():
        with _alone(folder / "lock"):
            if not target.exists():
                _compile(recipe, compiler, target)
    return ctypes.CDLL(str(target))


def _compile(recipe: Recipe, compiler: Compiler, target: Path) -> None:
    get_logger().info(
        "compiling the native library %r with %s, once for this machine",
        recipe.name,
        compiler.command[0],
    )
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{recipe.name}-", suffix=".so")
    os.close(handle)
    try:
        compiler.compile(recipe.sources, recipe.flags, Path(name))
        os.replace(name, target)  # nobody ever sees half of it
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _key(recipe: Recipe, compiler: Compiler) -> str:
    digest = hashlib.sha256()
    for path in recipe.sources + recipe.headers:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    facts = (*recipe.flags, compiler.identity, platform.machine(), *platform.libc_ver(), _cpu())
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """What -march=native goes by: the first processor's lines, where the system has them."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        return "\n".join(line for line in first.splitlines() if line.startswith(_CPU_WORDS))
    return platform.processor()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One compiler per cache at a time: the ranks of a host come here all at once."""
    with open(lock, "a") as file:
        end = time.monotonic() + _LOCK_PATIENCE_S
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks: then several may compile the same
                break
        yield
