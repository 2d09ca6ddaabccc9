"""The pull: for every parameter of a stage, its slices are asked for and brought where they belong.

One loop serves every format and every layout. It does not know layers: a parameter says in its
`shard` which slices it holds, and in its `intake` what becomes of them, if they are not copied. Of
the ranks it knows those that share its host's memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import nn

from llama.checkpoint.loading.fetch import Fetch
from llama.checkpoint.loading.huge_pages import ask_for_huge_pages
from llama.checkpoint.loading.intake import Intakes
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.peak import PeakMemory
from llama.checkpoint.loading.progress import Progress
from llama.checkpoint.loading.sharing import plan_for
from llama.checkpoint.loading.slices import Slices
from llama.checkpoint.loading.wants import Catalogue, own_want, share_wants
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.wording import sized
from llama.errors import OutOfMemoryError
from llama.parallel.agreement import in_step
from llama.parallel.comm import Communicator, SingleCommunicator


class Loadable(Protocol):
    """A module whose parameters are on the meta device and carry a `shard`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def materialize(self, device: torch.device) -> None:
        """Give every parameter memory on `device`; padding is zero, the rest need not be."""
        ...


def load(
    stage: Loadable,
    reader: CheckpointReader,
    *,
    device: torch.device | str,
    all_names: Iterable[str],
    available_bytes: int | None = None,
    local: Communicator | None = None,
    progress: Progress | None = None,
    rank: int = 0,
) -> LoadReport:
    """Give `stage` memory on `device` and fill every parameter from `reader`.

    Collective over `local`, the ranks that share this host's memory: what several need is read
    once. `all_names` are the whole model's, so that every rank notices what is missing or unused.
    `available_bytes` is what this rank may take of the device, where known.

    Raises CheckpointError before memory is taken when names or shapes do not fit,
    OutOfMemoryError with need and have, FailedElsewhereError where another rank has raised.
    """
    local, progress = local or SingleCommunicator(), progress or Progress()
    began, peak = time.monotonic(), PeakMemory()
    with progress.failing_for_all():
        with in_step(local):
            slices = Slices.of(stage.named_parameters())
            slices.check(reader, all_names)
            _materialize(stage, torch.device(device), available_bytes=available_bytes)
        fetch = _fill(stage, reader, slices, local=local, progress=progress, peak=peak)
    return LoadReport(
        rank=rank,
        n_tensors=len(slices.names),
        bytes_held=_nbytes(stage),
        bytes_read=fetch.bytes_read,
        bytes_handed=fetch.bytes_handed,
        seconds=time.monotonic() - began,
        peak_bytes=peak.nbytes,
        dtypes=slices.dtypes(reader),
        ignored=dict(reader.ignored),
    )


def _fill(
    stage: Loadable,
    reader: CheckpointReader,
    slices: Slices,
    *,
    local: Communicator,
    progress: Progress,
    peak: PeakMemory,
) -> Fetch:
    """Bring every slice where it belongs. Collective over `local`."""
    catalogue = Catalogue(reader)
    parameters = dict(stage.named_parameters())
    for parameter in parameters.values():
        ask_for_huge_pages(parameter)
    intakes = Intakes(parameters)
    asked = [
        own_want(intakes.of(path, piece), piece, name, catalogue)
        for path, piece, name in slices.rows
    ]
    everyone = share_wants([row for _, row in asked], catalogue, local)
    fetch = Fetch([want for want, _ in asked], local=local, progress=progress, peak=peak)
    fetch.run(plan_for(local.rank, everyone, catalogue))
    return fetch


def _materialize(stage: Loadable, device: torch.device, *, available_bytes: int | None) -> None:
    need = _nbytes(stage)
    if available_bytes is not None and need > available_bytes:
        raise _out_of_memory(need, available_bytes, device)
    try:
        stage.materialize(device)
    except (MemoryError, RuntimeError) as error:
        # torch reports a failed allocation on the CPU as a plain RuntimeError.
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_full and "allocate memory" not in str(error):
            raise
        have = sum(p.nbytes for _, p in stage.named_parameters() if not p.is_meta)
        if have < need:
            raise _out_of_memory(need, have, device) from error
        raise OutOfMemoryError(
            f"this rank's weights ({sized(need)}) fit on {device}, but not the tables of positions "
            "that lie beside them; lower max_seq_len"
        ) from error


def _out_of_memory(need: int, have: int, device: torch.device) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"this rank's weights need {need:,} bytes ({sized(need)}) on {device}, of which "
        f"{have:,} bytes ({sized(have)}) could be had; use more ranks, a 16-bit dtype, or "
        "quantize them"
    )


def _nbytes(stage: Loadable) -> int:
    return sum(parameter.nbytes for _, parameter in stage.named_parameters())
