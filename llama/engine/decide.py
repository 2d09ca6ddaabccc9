"""What the user left open, decided from headers alone before any rank has met another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from llama.checkpoint.reader import CheckpointReader
from llama.config import EngineConfig, ParallelConfig
from llama.engine.choose import choose_layout
from llama.engine.footprint import Workload
from llama.engine.machine import Machine
from llama.engine.source import ModelSource
from llama.errors import UsageError
from llama.parallel.backend import parse_device
from llama.parallel.meeting.rendezvous import expected_sizes
from llama.parallel.wish import with_environment

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(
    dtype: str | torch.dtype | None, *, device: torch.device, checkpoint: torch.dtype
) -> torch.dtype:
    """The compute dtype: as asked, else the checkpoint's on an accelerator and float32 on a CPU.

    CPUs without 16-bit units run bfloat16 slower than float32. Raises UsageError for an unknown
    name.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else checkpoint
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(sorted(_DTYPES))}")
    return found


def decide_layout(
    source: ModelSource,
    parallel: ParallelConfig,
    *,
    engine_options: Mapping[str, Any],
    dtype: str | torch.dtype | None = None,
) -> tuple[ParallelConfig, str]:
    """`parallel` with numbers where it says "auto", and why these; "" when nothing was open.

    The ranks have not met yet: each decides alone, from what is the same on all of them. What
    `python -m launch` was told comes first. Raises CheckpointError and UsageError.
    """
    if "auto" not in (parallel.tp_size, parallel.pp_size):
        return parallel, ""
    wish = replace(
        parallel,
        tp_size=None if parallel.tp_size == "auto" else parallel.tp_size,
        pp_size=None if parallel.pp_size == "auto" else parallel.pp_size,
    )
    wish = with_environment(wish, os.environ)
    if wish.tp_size is not None and wish.pp_size is not None:
        return wish, ""
    reader = source.open()
    work = workload(reader, engine_options=engine_options, dtype=dtype, device=parallel.device)
    reader.close()
    n_ranks, ranks_a_host = expected_sizes(os.environ)
    machine = Machine.empty(work.device_type, ranks_a_host=ranks_a_host)
    choice = choose_layout(
        work, n_ranks, machine, tp=wish.tp_size or "auto", pp=wish.pp_size or "auto"
    )
    layout = choice.layout
    return replace(wish, tp_size=layout.tp_size, pp_size=layout.pp_size), choice.reason


def workload(
    reader: CheckpointReader,
    *,
    engine_options: Mapping[str, Any],
    dtype: str | torch.dtype | None,
    device: str | None,
) -> Workload:
    """What would run, on `device` or by default a GPU where there is one. Raises UsageError."""
    kind, _ = parse_device(device)
    on = torch.device(kind or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Workload(
        reader.config,
        EngineConfig.of(engine_options, model=reader.config),
        resolve_dtype(dtype, device=on, checkpoint=reader.dtype),
        on.type,
    )
