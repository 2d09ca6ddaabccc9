"""What is run and how: four frozen dataclasses, checked once, with every derived number as a
property.

Nothing here knows files or devices; `llama.checkpoint` makes a ModelConfig from each format's own
keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from llama.errors import UsageError

DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (wavelength bands; see `llama.ops.rope`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        values = (self.factor, self.low_freq_factor, self.high_freq_factor)
        if not all(math.isfinite(v) and v > 0 for v in values) or self.original_context < 1:
            raise UsageError(f"rope scaling needs finite positive numbers, got {self}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UsageError(
                f"rope scaling needs high_freq_factor {self.high_freq_factor} above "
                f"low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model, in full (unsharded) sizes.

    `rope_style` says which pairs of a head rotate together: "interleaved" (2i, 2i+1; Meta and
    Mistral files) or "half" (i, i + head_dim/2; Hugging Face files). It belongs to the checkpoint.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_style: Literal["interleaved", "half"] = "interleaved"
    attention_bias: bool = False
    mlp_bias: bool = False
    architecture: str = "llama"

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "ffn_dim",
            "vocab_size",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise UsageError(f"head_dim must be even for rotary embedding, got {self.head_dim}")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a finite positive number, got {value!r}")

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block, for balancing stages."""
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding, and of the head when it is not tied."""
        return self.vocab_size * self.dim


@dataclass(frozen=True)
class ParallelConfig:
    """What the user asked for; None means "find out". `timeout_s` bounds one collective.

    `control_timeout_s` bounds the wait for rank 0's next plan; an interactive job idles that long.
    """

    tp_size: int | None = None
    pp_size: int | None = None
    device: str | None = None
    backend: str | None = None
    timeout_s: float = 300.0
    init_timeout_s: float = 120.0
    control_timeout_s: float = 86400.0


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine. Lengths are in tokens.

    `max_batch_size` sequences may run at once; `max_num_batched_tokens` bounds one step, so a
    longer prompt is prefilled in chunks. `num_blocks` None takes what max_batch_size sequences of
    max_seq_len need, or what fits.
    """

    max_seq_len: int = 2048
    max_batch_size: int = 32
    block_size: int = DEFAULT_BLOCK_SIZE
    max_num_batched_tokens: int = 2048
    num_blocks: int | None = None
    attention: str = "sdpa"
    memory_fraction: float = 0.9

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EngineConfig:
        """From options by name. Raises UsageError for an unknown one, too."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UsageError(
                f"unknown engine option {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("max_seq_len", "max_batch_size", "block_size", "max_num_batched_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise UsageError(f"num_blocks must be at least 1, got {self.num_blocks}")
        if not 0 < self.memory_fraction <= 1:
            raise UsageError(f"memory_fraction must be in (0, 1], got {self.memory_fraction}")

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks that one sequence of max_seq_len fills."""
        return -(-self.max_seq_len // self.block_size)
