"""Which keys a params.json may have, what each may be, and what those that are refused mean.

Meta's and Mistral's files share most of them. How the values make a model is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.formats.key_table import KeyTable
from llama.checkpoint.wording import short, shortened
from llama.errors import CheckpointError

# The largest are far beyond any model; they bound what a file can cost.
_KEYS = KeyTable(
    integers={
        "dim": (1, 2**20),
        "n_layers": (1, 2**14),
        "n_heads": (1, 2**16),
        "n_kv_heads": (1, 2**16),
        "head_dim": (1, 2**16),
        "hidden_dim": (1, 2**24),
        "vocab_size": (-1, 2**28),
        "multiple_of": (1, 2**20),
    },
    numbers={
        "ffn_dim_multiplier": (1e-3, 1e3),
        "norm_eps": (1e-30, 1.0),
        "rope_theta": (1.0, 1e15),
        "rope_scaling_factor": (1e-3, 1e6),
        "rope_high_freq_factor": (1e-3, 1e6),
    },
    booleans=("use_scaled_rope",),
    nullable=(
        "n_kv_heads",
        "head_dim",
        "hidden_dim",
        "ffn_dim_multiplier",
        "rope_theta",
        "rope_scaling_factor",
        "rope_high_freq_factor",
    ),
)

_IGNORED = {
    "max_batch_size": "a size of one run, not of the model",
    "max_seq_len": "a size of one run, not of the model",
    "vision_max_num_chunks": "has no effect without a vision encoder",
    "floor_scale": "has no effect without attn_temperature_tuning",
    "attn_scale": "has no effect without attn_temperature_tuning",
}

# Key -> what it would switch on.
_REFUSED = {
    "quantization_args": "quantised weights; use the checkpoint in bfloat16",
    "quantization": "quantised weights; use the checkpoint in bfloat16",
    "lora_args": "low-rank adapters; merge them into the weights or use the base checkpoint",
    "lora": "low-rank adapters; merge them into the weights or use the base checkpoint",
    "vision_chunk_size": "a vision encoder; use the text-only model of the family",
    "vision_num_cross_attention_layers": "cross-attention to images; use the text-only model",
    "vision_model": "a vision encoder; use the text-only model of the family",
    "vision_args": "a vision encoder; use a text-only model",
    "vision_encoder": "a vision encoder; use a text-only model",
    "multimodal": "more than text; use a text-only model",
    "moe_args": "a mixture of experts; use a dense model",
    "moe": "a mixture of experts; use a dense model",
    "ffn_exp": "another feed-forward size rule; give hidden_dim instead",
    "attention_chunk_size": "chunked attention; use a model with full attention",
    "nope_layer_interval": "layers without positions; use a model with RoPE in every layer",
    "use_qk_norm": "normalised queries and keys; use a model without",
    "yarn": "RoPE stretched by YaRN; use a model with plain RoPE",
    "llama_4_scaling": "length-dependent attention scale; use a model without",
    "attn_temperature_tuning": "length-dependent attention scale; use a model without",
}
_CONSTANTS = {"model_type": "transformer"}
_A_WINDOW = "a sliding attention window, which only Mistral's format has"
WINDOW_KEYS = ("sliding_window", "_sliding_window")
_MAX_WINDOW = 2**31
_MAX_DIGITS = 10


@dataclass(frozen=True)
class Dialect:
    """Whose params.json it is."""

    required: tuple[str, ...]
    refused: Mapping[str, str]
    has_windows: bool

    @property
    def constants(self) -> Mapping[str, str]:
        """Key -> the one value that it may have."""
        return _CONSTANTS

    @property
    def ignored(self) -> Mapping[str, str]:
        """Key -> why it has no effect."""
        return _IGNORED

    @property
    def numeric_keys(self) -> tuple[str, ...]:
        return _KEYS.keys

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that make the model."""
        return (*self.numeric_keys, *self.constants, *(WINDOW_KEYS if self.has_windows else ()))


META = Dialect(
    required=("dim", "n_layers", "n_heads"),
    refused={**_REFUSED, **dict.fromkeys(WINDOW_KEYS, _A_WINDOW)},
    has_windows=False,
)
MISTRAL = Dialect(
    required=(
        "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps",
        "vocab_size",
    ),
    refused=_REFUSED,
    has_windows=True,
)  # fmt: skip
DIALECTS = {"meta": META, "mistral": MISTRAL}


def checked(key: str, value: Any, path: Path) -> Any:
    """As `KeyTable.checked`; a vocabulary is -1, for as many as the tensors have, or a size."""
    if key == "vocab_size" and value == 0:
        raise CheckpointError(f"{path}: vocab_size must be -1 or at least 1, not {short(value)}")
    return _KEYS.checked(key, value, path)


def sliding_window(given: Mapping[str, Any], path: Path) -> int | tuple[int | None, ...] | None:
    """The window that Mistral's files give: a number, the same as text, or a cycle of layers."""
    found = {key: given[key] for key in WINDOW_KEYS if not is_off(given.get(key))}
    if not found:
        return None
    if len(found) > 1:
        raise CheckpointError(f"{path} gives {shortened(found)}, which are the same; keep one")
    ((key, value),) = found.items()
    if not isinstance(value, list):
        return _window(key, value, path)
    if not 1 <= len(value) <= _KEYS.integers["n_layers"][1]:
        raise CheckpointError(f"{path}: {key} lists {len(value)} windows; give one for each layer")
    cycle = tuple(None if size is None else _window(key, size, path) for size in value)
    return None if set(cycle) == {None} else cycle


def is_off(value: Any) -> bool:
    """Whether `value` switches a refused key, or a window, off."""
    return value is None or value is False or value == -1


def _window(key: str, value: Any, path: Path) -> int:
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or not 1 <= value <= _MAX_WINDOW:
        raise CheckpointError(
            f"{path}: {key} must be tokens from 1 to {_MAX_WINDOW:,}, their text, or a list of "
            f"such and null, not {short(value)}"
        )
    return value
