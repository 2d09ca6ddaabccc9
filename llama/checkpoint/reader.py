"""What a checkpoint container must answer. One file beside this one per container; FORMATS finds
it.

A reader shows full, named tensors and hides how many files hold them. It knows nothing of ranks or
layers: whoever loads asks for slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llama.config import ModelConfig


@dataclass(frozen=True)
class TensorInfo:
    """The full, unsharded tensor as the checkpoint declares it, known without reading its bytes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    files: tuple[str, ...]


class CheckpointReader(Protocol):
    """Full tensors of one checkpoint, by canonical name (Meta's: "layers.0.attention.wq.weight").

    `config` is the architecture as the checkpoint states it. `tensors` lists what is there.
    `ignored` names what is there and deliberately not part of a model, each with the reason.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def ignored(self) -> Mapping[str, str]: ...

    def read_into(self, out: Tensor, name: str, *, dim: int | None = None, start: int = 0) -> int:
        """Fill `out` with tensor `name`, or with out.shape[dim] items of its dim `dim` from
        `start`.

        Converts to out's dtype. Returns the bytes taken from the files. Raises CheckpointError that
        names the file when the bytes are not there.
        """
        ...

    def close(self) -> None:
        """Let go of the files. Reading afterwards is an error."""
        ...
