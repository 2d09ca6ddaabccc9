"""The pull: for every parameter of a stage, its slices are asked for and copied in place.

One loop serves every format and every layout. It does not know ranks or layers: a parameter says
in its `shard` which slices it holds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.wording import dtype_name, shortened
from llama.errors import CheckpointError, OutOfMemoryError
from llama.parallel.shard import Piece, Shard

_GIB = 1024**3


class Loadable(Protocol):
    """A module whose parameters are on the meta device and carry a `shard`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def materialize(self, device: torch.device) -> None:
        """Give every parameter memory on `device`; padding is zero, the rest need not be."""
        ...


@dataclass(frozen=True)
class LoadReport:
    """What one rank loaded: `bytes_held` in its parameters, `bytes_read` from files.

    `dtypes` counts the tensors by the dtype they are stored in.
    """

    n_tensors: int
    bytes_held: int
    bytes_read: int
    seconds: float
    dtypes: Mapping[str, int]
    ignored: Mapping[str, str]

    def __str__(self) -> str:
        stored = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        text = (
            f"{self.n_tensors} tensors ({stored}), holds {self.bytes_held / _GIB:.2f} GiB, "
            f"read {self.bytes_read / _GIB:.2f} GiB in {self.seconds:.1f} s"
        )
        if self.seconds > 0:
            text += f" ({self.bytes_read / _GIB / self.seconds:.2f} GiB/s)"
        return text + (f", ignored {shortened(self.ignored)}" if self.ignored else "")


def load(
    stage: Loadable,
    reader: CheckpointReader,
    *,
    device: torch.device | str,
    all_names: Iterable[str],
    available_bytes: int | None = None,
) -> LoadReport:
    """Give `stage` memory on `device` and fill every parameter from `reader`.

    `all_names` are the tensors of the whole model, so that every rank notices what is missing or
    unused. `available_bytes` is what this rank may take of the device, when the caller knows it.
    Raises CheckpointError before memory is taken when names or shapes do not fit,
    OutOfMemoryError with need and have.
    """
    began = time.monotonic()
    plan = list(_slices(stage))
    names = {name for _, _, name in plan}
    _check_names(reader, {*all_names, *names})
    _check_shapes(reader, plan)
    _materialize(stage, torch.device(device), available_bytes=available_bytes)
    parameters = dict(stage.named_parameters())
    bytes_read = sum(_fill(parameters[path], piece, reader, name) for path, piece, name in plan)
    dtypes = Counter(dtype_name(reader.tensors[name].dtype) for name in names)
    return LoadReport(
        n_tensors=len(names),
        bytes_held=_nbytes(stage),
        bytes_read=bytes_read,
        seconds=time.monotonic() - began,
        dtypes=dict(dtypes.most_common()),
        ignored=dict(reader.ignored),
    )


def _slices(stage: Loadable) -> Iterator[tuple[str, Piece, str]]:
    """Path of each parameter, a piece that it holds, and the full name of that piece's tensor."""
    for path, parameter in stage.named_parameters():
        shard: Shard = vars(parameter)["shard"]
        # A piece's source is relative to the module that owns the layer: two names up from the
        # parameter.
        owner = path.rsplit(".", 2)[0] + "." if path.count(".") > 1 else ""
        for piece in shard.pieces:
            yield path, piece, owner + piece.source


def _check_names(reader: CheckpointReader, needed: set[str]) -> None:
    missing = sorted(needed - reader.tensors.keys())
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} of the {len(needed)} tensors of this model: "
            f"{shortened(missing)}; it is incomplete, or its configuration is of another one"
        )
    unused = sorted(reader.tensors.keys() - needed)
    if unused:
        raise CheckpointError(
            f"the checkpoint has {len(unused)} tensors that this model would not use: "
            f"{shortened(unused)}; its weights or its configuration are of another model"
        )


def _check_shapes(reader: CheckpointReader, plan: Iterable[tuple[str, Piece, str]]) -> None:
    for path, piece, name in plan:
        info = reader.tensors[name]
        if info.shape != piece.full_shape:
            raise CheckpointError(
                f"{name} ({shortened(info.files)}) has shape {info.shape}, but {path} is cut from "
                f"{piece.full_shape}; weights and configuration are not of one model"
            )


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
        raise _out_of_memory(need, have, device) from error


def _out_of_memory(need: int, have: int, device: torch.device) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"this rank's weights need {need:,} bytes ({need / _GIB:.2f} GiB) on {device}, of which "
        f"{have:,} bytes ({have / _GIB:.2f} GiB) could be had; use more ranks or a 16-bit dtype"
    )


@torch.no_grad()
def _fill(parameter: Tensor, piece: Piece, reader: CheckpointReader, name: str) -> int:
    """Copy one piece where it belongs; returns the bytes taken from files."""
    if piece.dim is None:
        return reader.read_into(parameter, name)
    target = parameter.narrow(piece.dim, piece.offset, piece.stop - piece.start)
    return reader.read_into(target, name, dim=piece.dim, start=piece.start)


def _nbytes(stage: Loadable) -> int:
    return sum(parameter.nbytes for _, parameter in stage.named_parameters())
