"""Positions as rotations: the angles of one model, and those of one step's tokens.

Where frequencies are the same in every sequence a table holds all angles; where they depend on a
sequence's length (dynamic NTK) a step computes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from llama.config import ModelConfig
from llama.ops.batch import Batch
from llama.ops.rope import dynamic_frequencies, inverse_frequencies, rope_table, rotate


class Rotary(nn.Module):
    """Angles of positions 0 to max_positions - 1. Has no memory until `materialize`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        super().__init__()
        self._config = config
        self._max_positions = max_positions
        scaling = config.rope_scaling
        self._dynamic = scaling if scaling is not None and scaling.kind == "dynamic" else None

    def materialize(self, device: torch.device) -> None:
        """The table (max_positions, head_dim / 2), on `device`, if there is one."""
        if self._dynamic is not None:
            return
        config = self._config
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        cos, sin = rope_table(frequencies, self._max_positions)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    def forward(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """What turns heads (N, heads, head_dim) of the batch's tokens to their positions, which may
        happen in place.
        """
        cos, sin = self.angles(batch)
        return partial(rotate, cos=cos, sin=sin, style=self._config.rope_style)

    def angles(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """cos and sin, each (N, head_dim / 2) fp32, of the batch's tokens."""
        if self._dynamic is None:
            cos = self.cos.index_select(0, batch.positions)
            return cos, self.sin.index_select(0, batch.positions)
        frequencies = dynamic_frequencies(
            _lengths(batch), self._config.head_dim, self._config.rope_theta, self._dynamic
        )
        angles = batch.positions.float().unsqueeze(1) * frequencies  # (N, head_dim / 2)
        return angles.cos(), angles.sin()


def _lengths(batch: Batch) -> Tensor:
    """(N,) tokens that there are when a token is computed: its prompt's, or all up to its own.

    As if prompts were computed whole and answers token by token, which is how transformers
    generates, however steps cut them.
    """
    device = batch.positions.device
    prompts = torch.tensor(batch.prompt_lens, device=device)
    num_new = torch.tensor(batch.num_new_tokens, device=device)
    of_tokens = prompts.repeat_interleave(num_new, output_size=batch.n_tokens)
    return torch.maximum(of_tokens, batch.positions + 1)
