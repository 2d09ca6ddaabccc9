"""Sizes of models that are measured, and what one step of them cannot do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llama.config import ModelConfig
from llama.errors import UnknownNameError

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, stored as `dtype`."""

    name: str
    config: ModelConfig
    dtype: str = "float32"

    @property
    def product_parameters(self) -> int:
        """Weights of all matrix products, each read once in a decoding step: blocks and head."""
        config = self.config
        blocks = config.n_layers * (config.layer_parameters - 2 * config.dim)
        return blocks + config.embedding_parameters

    @property
    def n_parameters(self) -> int:
        """All but the vectors."""
        return self.product_parameters + self.config.embedding_parameters

    @property
    def stored_bytes(self) -> int:
        return self.n_parameters * ITEM_BYTES[self.dtype]

    def kv_bytes(self, n_tokens: int, *, item_bytes: int) -> int:
        """Keys and values of `n_tokens`, which a step reads besides."""
        config = self.config
        return 2 * config.n_layers * config.n_kv_heads * config.head_dim * item_bytes * n_tokens

    def prompt_flop(self, n_tokens: int) -> int:
        """Floating-point operations of a prompt, whose last token alone passes the head.

        Attention counts as causal: half of the scores.
        """
        config = self.config
        blocks = self.product_parameters - config.embedding_parameters
        scores = 2 * config.n_layers * config.n_heads * config.head_dim * n_tokens * n_tokens
        return 2 * blocks * n_tokens + 2 * config.embedding_parameters + scores


def _llama(
    name: str,
    *,
    dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    ffn_dim: int,
    vocab_size: int = 32000,
    dtype: str = "float32",
) -> Shape:
    config = ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        rope_style="half",
    )
    return Shape(name, config, dtype)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            _llama(
                "tiny", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, vocab_size=256
            ),
            _llama("110m", dim=768, n_layers=12, n_heads=12, n_kv_heads=12, ffn_dim=2048),
            _llama("1b", dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, ffn_dim=5632),
            _llama(
                "7b",
                dim=4096,
                n_layers=32,
                n_heads=32,
                n_kv_heads=32,
                ffn_dim=11008,
                dtype="bfloat16",
            ),
            _llama(
                "8b",
                dim=4096,
                n_layers=32,
                n_heads=32,
                n_kv_heads=8,
                ffn_dim=14336,
                vocab_size=128256,
                dtype="bfloat16",
            ),
        )
    }
)
"""7b and 8b are for GPUs, "tiny" is for tests of the benchmark itself."""


def find_shape(name: str) -> Shape:
    """Raises UnknownNameError that lists the known names."""
    try:
        return SHAPES[name]
    except KeyError:
        known = ", ".join(SHAPES)
        raise UnknownNameError(f"unknown shape {name!r}; known: {known}") from None
