"""Meta's params.json: which keys there are, what each may be, and the ModelConfig they make.

A key that changes the maths is implemented or refused, never dropped; so is every key that is not
known. The keys are those of Meta's ModelArgs from Llama 1 to 3.3 and of its llama-models
repository, and the two plain sizes of Mistral's files (head_dim, hidden_dim).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.json_file import read_object
from llama.checkpoint.wording import shortened
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError, UsageError

# Key -> (smallest, largest) value. The largest are far beyond any model; they bound what a file
# can cost.
_INTEGERS = {
    "dim": (1, 2**20),
    "n_layers": (1, 2**14),
    "n_heads": (1, 2**16),
    "n_kv_heads": (1, 2**16),
    "head_dim": (1, 2**16),
    "hidden_dim": (1, 2**24),
    "vocab_size": (-1, 2**28),
    "multiple_of": (1, 2**20),
}
_NUMBERS = {
    "ffn_dim_multiplier": (1e-3, 1e3),
    "norm_eps": (1e-30, 1.0),
    "rope_theta": (1.0, 1e15),
    "rope_scaling_factor": (1e-3, 1e6),
    "rope_high_freq_factor": (1e-3, 1e6),
}
_BOOLEANS = ("use_scaled_rope",)
_REQUIRED = ("dim", "n_layers", "n_heads")
_NULLABLE = (
    "n_kv_heads", "head_dim", "hidden_dim", "ffn_dim_multiplier", "rope_theta",
    "rope_scaling_factor", "rope_high_freq_factor",
)  # fmt: skip
_MAX_PARAMETERS = 10**14

_IGNORED = {
    "max_batch_size": "a size of one run, not of the model",
    "max_seq_len": "a size of one run, not of the model",
    "vision_max_num_chunks": "has no effect without a vision encoder",
    "floor_scale": "has no effect without attn_temperature_tuning",
    "attn_scale": "has no effect without attn_temperature_tuning",
}

# Key -> what it would switch on. null, false and -1 switch it off.
_REFUSED = {
    "quantization_args": "quantised weights; use the checkpoint in bfloat16",
    "lora_args": "low-rank adapters; merge them into the weights or use the base checkpoint",
    "vision_chunk_size": "a vision encoder; use the text-only model of the family",
    "vision_num_cross_attention_layers": "cross-attention to images; use the text-only model",
    "vision_model": "a vision encoder; use the text-only model of the family",
    "vision_args": "a vision encoder; use a text-only model",
    "moe_args": "a mixture of experts; use a dense model",
    "moe": "a mixture of experts; use a dense model",
    "ffn_exp": "another feed-forward size rule; give hidden_dim instead",
    "attention_chunk_size": "chunked attention; use a model with full attention",
    "nope_layer_interval": "layers without positions; use a model with RoPE in every layer",
    "use_qk_norm": "normalised queries and keys; use a model without",
    "attn_temperature_tuning": "length-dependent attention scale; use a model without",
    "sliding_window": "a sliding attention window; use a model with full attention",
    "_sliding_window": "a sliding attention window; use a model with full attention",
}

_LLAMA3_VOCAB = 128256
# Scaled RoPE in params.json comes without its factor. Llama 3.2 1B and 3B were trained with 32
# (their Hugging Face config says so since a fix after the release), all others with 8.
_LLAMA32_TEXT_DIMS = (2048, 3072)


@dataclass(frozen=True)
class Params:
    """The checked content of one params.json; `vocab_size` None means that the tensors tell it."""

    path: Path
    values: Mapping[str, Any]
    ignored: Mapping[str, str]

    @property
    def dim(self) -> int:
        return int(self.values["dim"])

    @property
    def vocab_size(self) -> int | None:
        size = self.values.get("vocab_size", -1)
        return size if size > 0 else None

    @property
    def head_dim(self) -> int:
        return int(self.values.get("head_dim") or self.dim // self.values["n_heads"])

    @property
    def n_query_rows(self) -> int:
        """Rows of the full wq."""
        return int(self.values["n_heads"]) * self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Columns of the feed-forward layers, as given or by Meta's formula."""
        return int(self.values.get("hidden_dim") or 0) or ffn_dim(
            self.dim,
            multiple_of=self.values.get("multiple_of", 256),
            multiplier=self.values.get("ffn_dim_multiplier"),
        )

    def model_config(
        self, *, vocab_size: int, attention_bias: bool = False, mlp_bias: bool = False
    ) -> ModelConfig:
        """The architecture. Raises CheckpointError when the values contradict each other."""
        values = self.values
        try:
            config = ModelConfig(
                dim=self.dim,
                n_layers=values["n_layers"],
                n_heads=values["n_heads"],
                n_kv_heads=values.get("n_kv_heads", values["n_heads"]),
                head_dim=self.head_dim,
                ffn_dim=self.ffn_dim,
                vocab_size=vocab_size,
                norm_eps=values.get("norm_eps", 1e-5),
                rope_theta=float(values.get("rope_theta", 10000.0)),
                rope_scaling=_rope_scaling(values),
                rope_style="interleaved",
                attention_bias=attention_bias,
                mlp_bias=mlp_bias,
            )
        except UsageError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        n_parameters = config.n_layers * config.layer_parameters + 2 * config.embedding_parameters
        if n_parameters > _MAX_PARAMETERS:
            raise CheckpointError(
                f"{self.path} describes a model of {n_parameters:,} parameters; "
                f"more than {_MAX_PARAMETERS:,} are not plausible"
            )
        return config


def read_params(path: Path) -> Params:
    """The checked params.json at `path`. Raises CheckpointError that names file, key and value."""
    given = _unwrapped(read_object(path), path)
    _refuse_unsupported(given, path)
    values = {key: _checked(key, value, path) for key, value in given.items() if key in _KEYS}
    values = {key: value for key, value in values.items() if value is not None}
    for key in _REQUIRED:
        if key not in values:
            raise CheckpointError(
                f"{path} lacks {key}; a params.json gives at least {shortened(_REQUIRED)}"
            )
    _check_heads(values, path)
    _check_rope(values, path)
    ignored = {f"{path.name}: {key}": _IGNORED[key] for key in given if key in _IGNORED}
    return Params(path, values, ignored)


def ffn_dim(dim: int, *, multiple_of: int, multiplier: float | None) -> int:
    """Meta's feed-forward width: two thirds of 4 · dim, times the multiplier, rounded up."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


_KEYS = (*_INTEGERS, *_NUMBERS, *_BOOLEANS)


def _unwrapped(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Some files keep the values under one key "model"; its neighbours count as values too."""
    inner = given.get("model")
    if not isinstance(inner, dict):
        return given
    outer = {key: value for key, value in given.items() if key != "model"}
    twice = sorted(outer.keys() & inner.keys())
    if twice:
        raise CheckpointError(f"{path} gives {shortened(twice)} both inside and beside 'model'")
    return {**outer, **inner}


def _refuse_unsupported(given: Mapping[str, Any], path: Path) -> None:
    for key, what in _REFUSED.items():
        value = given.get(key)
        if value is not None and value is not False and value != -1:
            raise CheckpointError(f"{path}: {key} {_short(value)} means {what}")
    unknown = sorted(given.keys() - {*_KEYS, *_IGNORED, *_REFUSED})
    if unknown:
        raise CheckpointError(
            f"{path} has unknown keys {shortened(unknown)}, which could change what the model "
            f"computes; known: {', '.join(sorted(_KEYS))}. Remove what has no effect on inference"
        )


def _checked(key: str, value: Any, path: Path) -> int | float | bool | None:
    """`value` when `key` may have it, None for an allowed null."""
    if value is None and key in _NULLABLE:
        return None
    if key in _BOOLEANS:
        if isinstance(value, bool):
            return value
        raise CheckpointError(f"{path}: {key} must be true or false, not {_short(value)}")
    kind = "an integer" if key in _INTEGERS else "a number"
    low, high = _INTEGERS[key] if key in _INTEGERS else _NUMBERS[key]
    right_type = type(value) is int or (type(value) is float and key in _NUMBERS)
    if not right_type or not low <= value <= high or (key == "vocab_size" and value == 0):
        raise CheckpointError(
            f"{path}: {key} must be {kind} from {low:,} to {high:,}, not {_short(value)}"
        )
    return int(value) if key in _INTEGERS else float(value)


def _check_heads(values: Mapping[str, Any], path: Path) -> None:
    if "head_dim" not in values and values["dim"] % values["n_heads"]:
        raise CheckpointError(
            f"{path}: n_heads {values['n_heads']} does not divide dim {values['dim']}; "
            f"a model whose heads are sized otherwise gives head_dim"
        )


def _check_rope(values: Mapping[str, Any], path: Path) -> None:
    scaled = values.get("use_scaled_rope", False)
    for key in ("rope_scaling_factor", "rope_high_freq_factor"):
        if key in values and not scaled:
            raise CheckpointError(f"{path}: {key} is given but use_scaled_rope is not true")
    # Only Llama 1 and 2 leave it out and mean 10000; for others, programs assume different values.
    is_later = scaled or values.get("vocab_size") == _LLAMA3_VOCAB or "hidden_dim" in values
    if "rope_theta" not in values and is_later:
        raise CheckpointError(
            f"{path} lacks rope_theta, which only Llama 1 and 2 may leave out; add it "
            f"(500000.0 for Llama 3, see the model card for others)"
        )


def _rope_scaling(values: Mapping[str, Any]) -> RopeScaling | None:
    if not values.get("use_scaled_rope"):
        return None
    default = 32.0 if values["dim"] in _LLAMA32_TEXT_DIMS else 8.0
    return RopeScaling(
        factor=values.get("rope_scaling_factor", default),
        high_freq_factor=values.get("rope_high_freq_factor", 4.0),
    )


def _short(value: Any) -> str:
    if isinstance(value, dict | list):  # repr would recurse as deep as the file says
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
