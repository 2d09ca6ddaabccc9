"""How names of files, tensors and dtypes stand in messages."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_MOST = 10


def shortened(names: Iterable[str]) -> str:
    """The names with commas between, at most ten of them."""
    names = [name[:120] for name in names]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
