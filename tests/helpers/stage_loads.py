"""One rank loads its stage, and the kernel counts what its process reads meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.loader import load
from llama.models.decoder import DecoderStage, tensor_names
from llama.parallel.context import ParallelContext
from tests.helpers.stage_weights import stage_at


@dataclass(frozen=True)
class StageLoad:
    """`asked_bytes` were read from files, `device_bytes` from the disk for want of a cache."""

    stage: DecoderStage
    report: LoadReport
    asked_bytes: int
    device_bytes: int


def load_stage(
    context: ParallelContext, folder: str, *, dtype: torch.dtype = torch.float32
) -> StageLoad:
    """Collective over the ranks of `context`, each of which loads its part of `folder`."""
    reader = open_checkpoint(folder)
    layout = context.layout
    stage = stage_at(reader.config, layout.tp_size, layout.pp_size, context.rank, dtype=dtype)
    before = _io_counts()
    report = load(
        stage,
        reader,
        device="cpu",
        all_names=tensor_names(reader.config),
        local=context.local,
        rank=context.rank,
    )
    after = _io_counts()
    reader.close()
    return StageLoad(
        stage,
        report,
        asked_bytes=after["rchar"] - before["rchar"],
        device_bytes=after["read_bytes"] - before["read_bytes"],
    )


def _io_counts() -> dict[str, int]:
    """See proc(5)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}
