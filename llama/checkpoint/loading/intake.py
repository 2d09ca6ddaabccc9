"""Where slices go: into a parameter as they are, or into what a layer makes of them.

A layer's own way in comes as the attribute `intake` of its parameter; its type is described in
`llama.quant.base`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llama.parallel.shard import Piece
from llama.quant.base import Intake, MakeIntake


class CopyIn:
    """The Intake of a slice that is copied into `target`, of the same shape."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    @property
    def device(self) -> torch.device:
        return self._target.device

    def direct(self, where: tuple[slice, ...], dtype: torch.dtype) -> Tensor | None:
        target = self._target[where]
        is_same = target.dtype == dtype and target.is_contiguous()
        return target if is_same and target.device.type == "cpu" else None

    def put(self, where: tuple[slice, ...], source: Tensor) -> None:
        self._target[where].copy_(source)


class Intakes:
    """The way in of every piece of a stage's parameters, given by their paths."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._held: dict[str, dict[str, Tensor]] = {}
        for path, parameter in parameters.items():
            owner, _, name = path.rpartition(".")
            self._held.setdefault(owner, {})[name] = parameter

    def of(self, path: str, piece: Piece) -> Intake:
        owner, _, name = path.rpartition(".")
        held = self._held[owner]
        make: MakeIntake | None = getattr(held[name], "intake", None)
        if make is not None:
            return make(piece, held)
        target = held[name].detach()
        if piece.dim is not None:
            target = target.narrow(piece.dim, piece.offset, piece.stop - piece.start)
        return CopyIn(target)
