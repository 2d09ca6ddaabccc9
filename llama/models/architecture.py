"""What sets one decoder family apart from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from llama.config import ModelConfig
from llama.parallel.comm import Communicator
from llama.quant.base import LinearMethod


class MakeBlock(Protocol):
    """Makes a module with forward(x (N, dim), step: Step, k_cache, v_cache) -> (N, dim)."""

    def __call__(
        self, config: ModelConfig, *, tp: Communicator, dtype: torch.dtype, method: LinearMethod
    ) -> nn.Module: ...


class MakeNorm(Protocol):
    """Makes the norm before the head, called `name` in the checkpoint."""

    def __call__(self, config: ModelConfig, *, name: str, dtype: torch.dtype) -> nn.Module: ...


@dataclass(frozen=True)
class Architecture:
    """The parts that `DecoderStage` puts together.

    Positions enter by rotating heads (RoPE) or, with `learned_positions`, as vectors that are added
    to the embedding, of which a checkpoint has config.max_positions.
    """

    make_block: MakeBlock
    make_norm: MakeNorm
    learned_positions: bool = False
