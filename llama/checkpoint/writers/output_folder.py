"""A new folder that appears finished or not at all.

It is filled beside its place under a name of its own, ".NAME.partial-XXXXXX", and renamed when all
of it is on the disk. The folder is locked for as long as its process lives, so that one which a
killed run has left is known, and removed by the next run for the same place.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama.errors import OutputError, UsageError

_SPARE_BYTES = 16 * 2**20
"""For names, headers and what file systems round up."""


@contextmanager
def output_folder(
    place: Path,
    *,
    need_bytes: int,
    is_replaceable: Callable[[Path], bool] | None = None,
) -> Iterator[Path]:
    """An empty folder to fill, which becomes `place` unless the body raises.

    A `place` that is not empty is replaced when `is_replaceable` says so of it; None never does.
    Raises UsageError when it must stay, OutputError when there is no room for `need_bytes` or
    something cannot be written, with nothing left behind.
    """
    place = Path(os.path.realpath(place))
    _check_place(place, is_replaceable)
    with _reported(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(place)
        _check_room(place.parent, need_bytes)
        partial, lock = _locked_folder(place)
        try:
            yield partial
            _sync_tree(partial)
            _put(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _check_place(place: Path, is_replaceable: Callable[[Path], bool] | None) -> None:
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is a file; give a folder that does not exist yet")
    if not place.is_dir() or not any(place.iterdir()):
        return
    if is_replaceable is None:
        raise UsageError(f"{place} is not empty; give another folder, or --overwrite")
    if not is_replaceable(place):
        raise UsageError(f"{place} holds no checkpoint, so it is not overwritten; remove it first")


@contextmanager
def _reported(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = error.filename or place
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _check_room(folder: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if need_bytes + _SPARE_BYTES > free:
        raise OutputError(
            f"{folder} has {free:,} bytes free, but {need_bytes + _SPARE_BYTES:,} are needed; make "
            f"room or give a folder on another disk"
        )


def _prefix(place: Path, state: str = "partial") -> str:
    return f".{place.name}.{state}-"


def _locked_folder(place: Path) -> tuple[Path, int]:
    """A new folder beside `place`, and the descriptor that holds its lock."""
    while True:
        partial = place.parent / f"{_prefix(place)}{secrets.token_hex(4)}"
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY)
        _try_lock(lock)
        # Another run may have taken it for a stale one before it was locked.
        if partial.exists():
            return partial, lock
        os.close(lock)


def _remove_stale(place: Path) -> None:
    """Remove what killed runs for `place` have left; what is locked belongs to one that lives."""
    prefixes = [_prefix(place)]
    if place.is_dir():
        prefixes.append(_prefix(place, "replaced"))  # while it is the only one it is worth keeping
    for path in place.parent.iterdir():
        if not path.name.startswith(tuple(prefixes)) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                if _try_lock(lock):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Whether it is locked now; never on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_tree(folder: Path) -> None:
    """Put the names of all files on the disk; whoever wrote a file has seen to its content."""
    for parent, _, _ in os.walk(folder, topdown=False):
        _sync(Path(parent))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, place: Path) -> None:
    """Rename `partial` to `place`. What is there, if anything, moves out of the way just before.

    A process that is killed between the two renames leaves both, complete, under hidden names.
    """
    if not place.is_dir() or not any(place.iterdir()):
        os.rename(partial, place)  # over an empty folder as well
        _sync(place.parent)
        return
    old = place.parent / f"{_prefix(place, 'replaced')}{secrets.token_hex(4)}"
    os.rename(place, old)
    try:
        os.rename(partial, place)
    except BaseException:
        os.rename(old, place)
        raise
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)
