"""What the planners of all formats need: the model that is there, and how its rotary embedding is
put into another convention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llama.checkpoint.canonical import EMBEDDING, HEAD
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers.output_tensor import OutputTensor, Piece, Rows
from llama.config import ModelConfig
from llama.errors import UsageError

EmbeddingSplit = Literal["vocab", "hidden"]


@dataclass(frozen=True)
class Options:
    """How the new checkpoint is cut; None leaves the choice to the format."""

    shards: int | None = None
    tp: int = 1
    pp: int = 1
    dtype: torch.dtype | None = None
    embedding_split: EmbeddingSplit | None = None

    def __post_init__(self) -> None:
        for name in ("shards", "tp", "pp"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Source:
    """The tensors of `reader`, with the rotary embedding in the convention `rope_style`."""

    reader: CheckpointReader
    rope_style: Literal["interleaved", "half"]
    dtype: torch.dtype | None

    @property
    def config(self) -> ModelConfig:
        return self.reader.config

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self.reader.tensors

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding, by the configuration or by lying in the same bytes."""
        if self.config.tied_embeddings:
            return True
        embedding, head = self.tensors[EMBEDDING], self.tensors[HEAD]
        extents = embedding.extents()
        return bool(extents) and head.shape == embedding.shape and head.extents() == extents

    def rows(self, name: str, *, dim: int = 0, start: int = 0, length: int | None = None) -> Rows:
        """Tensor `name`, or `length` items of dim `dim` from `start`; whole heads if it rotates."""
        tensor = self.tensors[name]
        if length is not None:
            tensor = tensor.narrow(dim, start, length)
        is_rotated = name.rpartition(".")[0].endswith(("attention.wq", "attention.wk"))
        has_rope = self.config.architecture != "gpt2"
        if not is_rotated or not has_rope or self.config.rope_style == self.rope_style:
            return Rows(tensor)
        change = _to_half if self.rope_style == "half" else _to_interleaved
        head_dim = self.config.head_dim
        return Rows(tensor, lambda rows: change(rows, head_dim), unit=head_dim)

    def output(self, name: str, *pieces: Piece) -> OutputTensor:
        """The new tensor that `pieces` make; `name` is for messages."""
        return OutputTensor.of(name, pieces, self.dtype)


def refuse(config: ModelConfig, target: str, reasons: Mapping[str, bool], *, possible: str) -> None:
    """Raises UsageError naming those of `reasons` that hold, and what is `possible`."""
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UsageError(
            f"the {target} format cannot hold this {config.architecture} model: "
            f"{'; '.join(found)}. Possible: {possible}"
        )


def _to_half(rows: Tensor, head_dim: int) -> Tensor:
    """Pairs (2i, 2i+1) of every head become (i, i + head_dim/2)."""
    heads = rows.view(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


def _to_interleaved(rows: Tensor, head_dim: int) -> Tensor:
    heads = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)
