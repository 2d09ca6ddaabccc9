"""The params.json of Meta and of Mistral, and the ModelConfig that its values make.

A key that changes the maths is implemented or refused, never dropped; so is every key that is not
known. The keys are those of Meta's ModelArgs from Llama 1 to 3.3 and of its llama-models
repository, and those of Mistral's inference package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama.checkpoint.formats.described import described_model
from llama.checkpoint.formats.params_keys import (
    DIALECTS,
    META,
    Dialect,
    checked,
    is_off,
    sliding_window,
)
from llama.checkpoint.wording import short, shortened
from llama.config import ModelConfig, RopeScaling
from llama.errors import CheckpointError
from llama.files.json_file import read_object

_LLAMA3_VOCAB = 128256
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

    def model_config(self, *, vocab_size: int, names: Iterable[str] = ()) -> ModelConfig:
        """The architecture, for the `vocab_size` and the `names` of the tensors, which alone tell
        of biases. Raises CheckpointError when they or the values contradict each other.
        """
        if self.vocab_size not in (None, vocab_size):
            raise CheckpointError(
                f"{self.path} gives vocab_size {self.vocab_size}, but the tensors make a "
                f"vocabulary of {vocab_size}; it belongs to another model"
            )
        names = tuple(names)
        values = self.values

        def make() -> ModelConfig:
            return ModelConfig(
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
                attention_bias=any(name.endswith("attention.wq.bias") for name in names),
                mlp_bias=any(name.endswith("feed_forward.w1.bias") for name in names),
                sliding_window=values.get("sliding_window"),
            )

        return described_model(self.path, make)


def read_params(path: Path, *, dialect: Literal["meta", "mistral"] = "meta") -> Params:
    """The checked params.json at `path`. Raises CheckpointError that names file, key and value."""
    rules = DIALECTS[dialect]
    given = _unwrapped(read_object(path), path)
    _refuse_unsupported(given, rules, path)
    found = {key: checked(key, given[key], path) for key in rules.numeric_keys if key in given}
    values: dict[str, Any] = {key: value for key, value in found.items() if value is not None}
    for key in rules.required:
        if key not in values:
            raise CheckpointError(
                f"{path} lacks {key}; a params.json gives at least {shortened(rules.required)}"
            )
    if rules.has_windows:
        values["sliding_window"] = sliding_window(given, path)
    _check_heads(values, path)
    _check_rope(values, rules, path)
    # The files of Mistral 7B v0.1, the one with a window, leave out the base of 1e4.
    if rules is not META and "rope_theta" not in values:
        values["rope_theta"] = 1e6 if values["sliding_window"] is None else 1e4
    reasons = {key: why for key, why in rules.ignored.items() if key in given}
    return Params(path, values, {f"{path.name}: {key}": why for key, why in reasons.items()})


def ffn_dim(dim: int, *, multiple_of: int, multiplier: float | None) -> int:
    """Meta's feed-forward width: two thirds of 4 · dim, times the multiplier, rounded up."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def implied_rope_factor(dim: int) -> float:
    """What `use_scaled_rope` means in a model of width `dim` where the file gives no factor.

    Meta's own files never do. Llama 3.2 1B and 3B were trained with 32 (their Hugging Face config
    says so since a fix after the release), all others with 8.
    """
    return 32.0 if dim in _LLAMA32_TEXT_DIMS else 8.0


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


def _refuse_unsupported(given: Mapping[str, Any], rules: Dialect, path: Path) -> None:
    for key, what in rules.refused.items():
        if not is_off(given.get(key)):
            raise CheckpointError(f"{path}: {key} {short(given[key])} means {what}")
    for key, constant in rules.constants.items():
        if given.get(key, constant) != constant:
            raise CheckpointError(f"{path}: {key} must be {constant!r}, not {short(given[key])}")
    unknown = sorted(given.keys() - {*rules.keys, *rules.ignored, *rules.refused})
    if unknown:
        raise CheckpointError(
            f"{path} has unknown keys {shortened(unknown)}, which could change what the model "
            f"computes; known: {', '.join(sorted(rules.keys))}. Remove what has no effect on "
            f"inference"
        )


def _check_heads(values: Mapping[str, Any], path: Path) -> None:
    if "head_dim" not in values and values["dim"] % values["n_heads"]:
        raise CheckpointError(
            f"{path}: n_heads {values['n_heads']} does not divide dim {values['dim']}; "
            f"a model whose heads are sized otherwise gives head_dim"
        )


def _check_rope(values: Mapping[str, Any], rules: Dialect, path: Path) -> None:
    scaled = values.get("use_scaled_rope", False)
    for key in ("rope_scaling_factor", "rope_high_freq_factor"):
        if key in values and not scaled:
            raise CheckpointError(f"{path}: {key} is given but use_scaled_rope is not true")
    # Only Llama 1 and 2 leave it out and mean 10000; for others, programs assume different values.
    is_later = scaled or values.get("vocab_size") == _LLAMA3_VOCAB or "hidden_dim" in values
    if rules is META and "rope_theta" not in values and is_later:
        raise CheckpointError(
            f"{path} lacks rope_theta, which only Llama 1 and 2 may leave out; add it "
            f"(500000.0 for Llama 3, see the model card for others)"
        )


def _rope_scaling(values: Mapping[str, Any]) -> RopeScaling | None:
    if not values.get("use_scaled_rope"):
        return None
    return RopeScaling(
        factor=values.get("rope_scaling_factor", implied_rope_factor(values["dim"])),
        high_freq_factor=values.get("rope_high_freq_factor", 4.0),
    )
