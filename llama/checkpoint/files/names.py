"""File names that a checkpoint itself gives: one plain component inside its folder, or refused.

An index is written by whoever made the checkpoint, so its names must not lead anywhere else.
"""

from __future__ import annotations

import os
from pathlib import Path

from llama.errors import CheckpointError

_MAX_NAME = 255


def plain_file(folder: Path, name: str) -> Path:
    """`folder / name`, which need not exist. Nothing is opened.

    A symbolic link may stay inside the folder or, in a folder of the Hugging Face cache
    (models--x/snapshots/REVISION), lead to a file of the same models--x. Raises CheckpointError.
    """
    shown = ascii(name[:80])
    try:
        n_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise CheckpointError(f"{folder}: the file name {shown} is no valid text") from None
    is_plain = name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")
    if not is_plain or n_bytes > _MAX_NAME:
        raise CheckpointError(
            f"{folder}: the checkpoint names the file {shown}; the files of a checkpoint must be "
            f"plain names inside its folder"
        )
    path = folder / name
    root = Path(os.path.realpath(folder))
    # realpath and not Path.resolve: a loop of links is left to whoever opens it
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(root) and not target.is_relative_to(_cache_root(root)):
        raise CheckpointError(
            f"{path} is a link that leads out of its folder, to {target}; put the file itself there"
        )
    return path


def _cache_root(folder: Path) -> Path:
    """The models--x that `folder` is a snapshot of; `folder` itself when it is none."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return parent.parent.parent
    return folder
