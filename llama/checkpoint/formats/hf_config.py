"""The config.json of Hugging Face, and the ModelConfig that its values make.

A key that changes the maths is implemented or refused. The files have many more that do not; what
is known of neither kind is left alone and named in a note. No code that a file names is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama.checkpoint.formats.described import described_model
from llama.checkpoint.formats.hf_keys import (
    ARCHITECTURES,
    CODE_KEYS,
    DEFAULTS,
    GPT2_ALIASES,
    HARMLESS,
    LAYER_TYPES,
    REFUSED,
    ROPE_KEYS,
    USE_WINDOW,
    checked,
    is_neutral,
)
from llama.checkpoint.formats.hf_rope import rope_of
from llama.checkpoint.wording import short, shortened
from llama.config import ModelConfig
from llama.errors import CheckpointError
from llama.files.json_file import read_object

_SILU = ("silu", "swish")
# The tanh approximation has many names; they differ by less than 3e-7.
_GELUS: Mapping[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class HFConfig:
    """The architecture as the file states it; `notes` on what is odd, `warnings` on what might
    matter.
    """

    model: ModelConfig
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    model_type: str


def read_config(path: Path) -> HFConfig:
    """The checked config.json at `path`. Raises CheckpointError that names file, key and value."""
    given = read_object(path)
    model_type = _model_type(given, path)
    _check_architectures(given.get("architectures"), model_type, path)
    if model_type == "gpt2":
        given = _without_aliases(given, path)
    _refuse_unsupported(given, path)
    defaults = DEFAULTS[model_type]
    values = {key: checked(key, given.get(key, default), path) for key, default in defaults.items()}
    make = _gpt2 if model_type == "gpt2" else _llama
    model = described_model(path, lambda: make(values, given, path))
    return HFConfig(model, _notes(given, path), _warnings(given, model_type, path), model_type)


def _model_type(given: Mapping[str, Any], path: Path) -> str:
    model_type = given.get("model_type")
    if not isinstance(model_type, str) or model_type not in DEFAULTS:
        what = "lacks model_type" if model_type is None else f"has model_type {short(model_type)}"
        raise CheckpointError(
            f"{path} {what}; of Hugging Face's models, {', '.join(DEFAULTS)} are run"
        )
    return model_type


def _check_architectures(stated: Any, model_type: str, path: Path) -> None:
    known = ARCHITECTURES[model_type]
    for name in stated if isinstance(stated, list) else [stated]:
        if name is not None and name not in known:
            raise CheckpointError(
                f"{path}: architectures has {short(name)}; of model_type {model_type}, "
                f"{', '.join(known)} are run"
            )


def _without_aliases(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same values under GPT-2's own keys alone."""
    renamed = dict(given)
    for key, alias in GPT2_ALIASES.items():
        if alias not in renamed:
            continue
        value = checked(key, renamed.pop(alias), path)
        if checked(key, renamed.setdefault(key, value), path) != value:
            raise CheckpointError(
                f"{path}: {key} {renamed[key]} and {alias} {value} are the same size; keep the "
                f"right one"
            )
    return renamed


def _refuse_unsupported(given: Mapping[str, Any], path: Path) -> None:
    for key, (neutral, meaning) in REFUSED.items():
        if key in given and not is_neutral(given[key], neutral):
            raise CheckpointError(f"{path}: {key} {short(given[key])} means {meaning}")


def _llama(values: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> ModelConfig:
    if values["hidden_act"] not in _SILU:
        raise CheckpointError(
            f"{path}: hidden_act {short(values['hidden_act'])} is not run; known: "
            f"{', '.join(_SILU)}"
        )
    _check_layers(values["sliding_window"], given, path)
    n_heads = values["num_attention_heads"]
    theta, scaling = rope_of(given, path, max_positions=values["max_position_embeddings"])
    return ModelConfig(
        dim=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=values["num_key_value_heads"] or n_heads,
        head_dim=values["head_dim"] or _head_dim(values["hidden_size"], n_heads, path),
        ffn_dim=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        norm_eps=values["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        rope_style="half",
        attention_bias=values["attention_bias"],
        mlp_bias=values["mlp_bias"],
        tied_embeddings=values["tie_word_embeddings"],
        sliding_window=values["sliding_window"],
        max_positions=values["max_position_embeddings"],
    )


def _check_layers(window: int | None, given: Mapping[str, Any], path: Path) -> None:
    """Windows must be those of the model_type, and in all layers or in none."""
    if window is not None and given["model_type"] == "llama":
        raise CheckpointError(
            f"{path}: sliding_window {window} in a model of model_type llama, which has none; "
            f"model_type mistral has"
        )
    if given.get(USE_WINDOW) not in (None, window is not None):
        raise CheckpointError(
            f"{path}: {USE_WINDOW} {short(given[USE_WINDOW])} and sliding_window {window} "
            f"contradict each other; remove {USE_WINDOW}, or set sliding_window to null for none"
        )
    kind = "full_attention" if window is None else "sliding_attention"
    kinds = given.get(LAYER_TYPES)
    if kinds is not None and not (isinstance(kinds, list) and all(k == kind for k in kinds)):
        raise CheckpointError(
            f"{path}: {LAYER_TYPES} must be {kind} for every layer, as sliding_window says; models "
            f"with layers of several kinds are not run"
        )


def _gpt2(values: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> ModelConfig:
    activation = values["activation_function"]
    if activation not in _GELUS:
        raise CheckpointError(
            f"{path}: activation_function {short(activation)} is not run; known: "
            f"{', '.join(_GELUS)}"
        )
    dim, n_heads = values["n_embd"], values["n_head"]
    return ModelConfig(
        dim=dim,
        n_layers=values["n_layer"],
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=_head_dim(dim, n_heads, path),
        ffn_dim=values["n_inner"] or 4 * dim,
        vocab_size=values["vocab_size"],
        norm_eps=values["layer_norm_epsilon"],
        rope_style="half",
        attention_bias=True,
        mlp_bias=True,
        architecture="gpt2",
        activation=_GELUS[activation],
        tied_embeddings=values["tie_word_embeddings"],
        max_positions=values["n_positions"],
    )


def _head_dim(dim: int, n_heads: int, path: Path) -> int:
    if dim % n_heads:
        raise CheckpointError(f"{path}: {n_heads} heads do not divide the {dim} of hidden_size")
    return dim // n_heads


def _notes(given: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    return tuple(
        f"{path.name}: {key} is ignored; no code of a checkpoint is run"
        for key in CODE_KEYS
        if key in given
    )


def _warnings(given: Mapping[str, Any], model_type: str, path: Path) -> tuple[str, ...]:
    rope_keys = () if model_type == "gpt2" else (*ROPE_KEYS, LAYER_TYPES, USE_WINDOW)
    known = {"model_type", "architectures", *DEFAULTS[model_type], *rope_keys}
    known |= {*REFUSED, *CODE_KEYS, *HARMLESS}
    unknown = sorted(given.keys() - known)
    if not unknown:
        return ()
    return (f"{path.name}: no use is made of the unknown keys {shortened(unknown)}",)
