"""Whether a folder may be deleted to make room for another checkpoint: only when nothing else is in
it.
"""

from __future__ import annotations

import os
from pathlib import Path

from llama.checkpoint import FORMATS
from llama.registry import resolve

_SUFFIXES = frozenset({
    ".bin", ".chk", ".distcp", ".jinja", ".json", ".md", ".model", ".pt", ".pth", ".safetensors",
    ".sha256", ".txt", ".v1", ".v2", ".v3",
})  # fmt: skip
_WITHOUT_SUFFIX = frozenset({".gitattributes", ".metadata", "LICENSE", "LICENSE.txt", "NOTICE"})


def is_replaceable(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of a known format and every file below it belongs to one,
    told from names. A home folder in which somebody has left a file of weights is none.
    """
    names = [name for _, _, files in os.walk(folder) for name in files]
    if not all(Path(name).suffix in _SUFFIXES or name in _WITHOUT_SUFFIX for name in names):
        return False
    return any(resolve(FORMATS, name, kind="format").recognises(folder) for name in FORMATS)
