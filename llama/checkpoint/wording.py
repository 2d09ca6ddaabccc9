"""How names of files, tensors and dtypes, sizes and values stand in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_MOST = 10


def shortened(names: Iterable[str]) -> str:
    """The names with commas between, at most ten of them."""
    names = [name[:120] for name in names]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sized(n_bytes: int) -> str:
    """Bytes for people: "0.8 MiB", "13.48 GiB"."""
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:.1f} MiB"
    return f"{n_bytes / 2**30:.2f} GiB"


def short(value: Any) -> str:
    """`value` for a message."""
    if isinstance(value, dict | list):  # repr would recurse as deep as the file says
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
