"""What a program asks of the job, completed by the variables of `python -m launch`, as a layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llama.config import TIME_LIMITS, ParallelConfig
from llama.errors import UsageError
from llama.parallel.layout import ParallelLayout


def with_environment(config: ParallelConfig, environ: Mapping[str, str]) -> ParallelConfig:
    """`config`, its open fields filled from the variables that `python -m launch` sets.

    The time limits are all set afterwards. Raises UsageError for a size or a limit that is no
    number, and for a limit that ParallelConfig refuses.
    """
    found: dict[str, Any] = {
        name: _limit_s(config, name, environ.get(f"LLAMA_{name.upper()}")) for name in TIME_LIMITS
    }
    for name in ("tp_size", "pp_size", "device", "backend", "transport"):
        variable = f"LLAMA_{name.upper()}"
        text = environ.get(variable)
        if text and getattr(config, name) is None:
            if name.endswith("_size") and not text.isdecimal():
                raise UsageError(f"{variable} must be a whole number, got {text!r}")
            found[name] = int(text) if name.endswith("_size") else text
    return replace(config, **found)


def _limit_s(config: ParallelConfig, name: str, text: str | None) -> float:
    if not text or getattr(config, name) is not None:
        return config.limit_s(name)
    try:
        return replace(config, **{name: float(text)}).limit_s(name)  # type: ignore[arg-type]
    except ValueError:  # a UsageError is one too
        least = "0 (off) or more" if name == "heartbeat_timeout_s" else "above 0"
        raise UsageError(
            f"LLAMA_{name.upper()} must be a number of seconds {least}, got {text!r}"
        ) from None


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
