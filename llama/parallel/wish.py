"""What a program asks of the job, completed by the variables of `python -m launch`, as a layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llama.config import ParallelConfig
from llama.errors import UsageError
from llama.parallel.layout import ParallelLayout


def with_environment(config: ParallelConfig, environ: Mapping[str, str]) -> ParallelConfig:
    """`config`, its open fields filled from the variables that `python -m launch` sets.

    Raises UsageError for a size that is no number.
    """
    found: dict[str, Any] = {}
    for name in ("tp_size", "pp_size", "device", "backend"):
        variable = f"LLAMA_{name.upper()}"
        text = environ.get(variable)
        if text and getattr(config, name) is None:
            if name.endswith("_size") and not text.isdecimal():
                raise UsageError(f"{variable} must be a whole number, got {text!r}")
            found[name] = int(text) if name.endswith("_size") else text
    return replace(config, **found)


def resolve_layout(
    config: ParallelConfig, *, world_size: int, existing: tuple[int, int] | None
) -> ParallelLayout:
    """The layout for what is asked; `existing` (tp_size, pp_size) stand in when nothing is.

    Raises UsageError when the sizes do not fit the world, or are still "auto".
    """
    tp_size, pp_size = config.tp_size, config.pp_size
    if tp_size == "auto" or pp_size == "auto":
        raise UsageError(
            f'tp {tp_size!r} and pp {pp_size!r} must be numbers here; "auto" needs a checkpoint'
        )
    if tp_size is None and pp_size is None and existing is not None:
        tp_size, pp_size = existing
    pp_size = 1 if pp_size is None else pp_size
    if tp_size is None:
        is_size = isinstance(pp_size, int) and pp_size > 0
        tp_size = max(1, world_size // pp_size) if is_size else 1
    return ParallelLayout.for_world(world_size, tp_size=tp_size, pp_size=pp_size)
