"""What a file really is, told from its first bytes: the usual accidents of a download, by name.

It knows nothing of the formats that a caller hoped for; it only says what stands where a file
should be.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from llama.errors import CheckpointError

_HEAD_BYTES = 512
_LFS_POINTER = b"version https://git-lfs"
_LFS_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)
_ZIP_MEMBER = b"PK\x03\x04"
_PICKLE = b"\x80"  # every protocol since 2
_KNOWN = (
    (b"<!doctype", "an HTML page, so the link had expired or needed a login; download it again"),
    (b"<html", "an HTML page, so the link had expired or needed a login; download it again"),
    (b"<?xml", "an XML error message of a server; request a fresh link and download it again"),
    (b"gguf", "a GGUF file of llama.cpp, which this runtime does not read"),
    (b"\x1f\x8b", "gzip-compressed; decompress it first"),
)


def regular_file(path: Path) -> int:
    """The size of `path` in bytes. Raises CheckpointError for what is no readable, regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot open {path}: {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe would wait for ever, a device would never end.
        raise CheckpointError(f"{path} is not a regular file")
    return status.st_size


def read_head(path: Path) -> bytes:
    """The first bytes of `path`. Raises CheckpointError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {_reason(error)}") from error


def accident(head: bytes) -> str | None:
    """What a file that begins with `head` is by accident, with the way out; None if unknown."""
    if not head:
        return "empty: its download never began; download it again"
    if head.startswith(_LFS_POINTER):
        size = _LFS_SIZE.search(head)
        real = f" to {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer{real}, not the file itself; fetch it with `git lfs pull`"
    if not head.strip(b"\0"):
        return (
            "filled with zeros: space was set aside but the download never came; download it again"
        )
    text = head.lstrip().lower()
    return next((what for start, what in _KNOWN if text.startswith(start)), None)


def is_zip(head: bytes) -> bool:
    return head.startswith(_ZIP_MEMBER)


def is_legacy_torch(head: bytes) -> bool:
    """Whether torch before 1.6 may have written it: a row of pickles."""
    return head.startswith(_PICKLE)


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
