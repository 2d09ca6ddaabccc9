"""The rotary embedding of a Hugging Face config.json, in the spelling of transformers 4 and of 5.

The old one has rope_theta beside rope_scaling {type or rope_type, ...}, the new one puts all into
rope_parameters {rope_type, rope_theta, ...}, which may be keyed by the kinds of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.formats.hf_keys import checked
from llama.checkpoint.wording import short, shortened
from llama.config import RopeScaling
from llama.errors import CheckpointError

_DEFAULT_THETA = 10000.0
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "dynamic": ("factor",),
}  # fmt: skip
_KINDS_OF_LAYERS = ("full_attention", "sliding_attention")
# Set by transformers beside every kind; a factor of 1 rotates whole heads.
_ALLOWED = {
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "factor",
    "original_max_position_embeddings",
}  # fmt: skip

Rope = tuple[float, RopeScaling | None]


@dataclass(frozen=True)
class _File:
    """What the file says beside its rotary objects."""

    path: Path
    theta: float
    max_positions: int


def rope_of(given: Mapping[str, Any], path: Path, *, max_positions: int) -> Rope:
    """The base of the frequencies, and how they are stretched in a model of `max_positions`.

    Raises CheckpointError for kinds that are not run and for numbers that are missing or wrong,
    UsageError for numbers at odds with each other.
    """
    theta = given.get("rope_theta")
    theta = _DEFAULT_THETA if theta is None else checked("rope_theta", theta, path)
    file = _File(path, theta, max_positions)
    found = [
        _parsed(key, given[key], file)
        for key in ("rope_parameters", "rope_scaling")
        if given.get(key) is not None
    ]
    if len(found) == 2 and found[0] != found[1]:
        raise CheckpointError(
            f"{path}: rope_scaling and rope_parameters contradict each other; keep the right one"
        )
    return found[0] if found else (theta, None)


def _parsed(key: str, value: Any, file: _File) -> Rope:
    path = file.path
    value = _object(key, value, path)
    nested = {name: value[name] for name in _KINDS_OF_LAYERS if name in value}
    if not nested:
        return _rope(key, value, file)
    beside = sorted(value.keys() - nested.keys())
    if beside:
        raise CheckpointError(f"{path}: {key} has {shortened(beside)} beside its kinds of layers")
    ropes = [
        _rope(f"{key}.{name}", _object(f"{key}.{name}", inner, path), file)
        for name, inner in nested.items()
        if inner is not None
    ]
    if not ropes or any(rope != ropes[0] for rope in ropes):
        raise CheckpointError(
            f"{path}: {key} gives each kind of layer another RoPE; use a model with one RoPE"
        )
    return ropes[0]


def _object(key: str, value: Any, path: Path) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise CheckpointError(f"{path}: {key} must be an object or null, not {short(value)}")


def _rope(key: str, value: Mapping[str, Any], file: _File) -> Rope:
    path, theta = file.path, file.theta
    kind = _kind(key, value, path)
    wanted = _NUMBERS[kind]
    unknown = sorted(value.keys() - _ALLOWED - set(wanted))
    if unknown or value.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        what = unknown or ["partial_rotary_factor"]
        raise CheckpointError(
            f"{path}: {key} has {shortened(what)}, which rope_type {kind} does not run with"
        )
    missing = [name for name in wanted if name not in value]
    if missing:
        raise CheckpointError(f"{path}: {key} lacks {shortened(missing)}, which {kind} needs")
    if value.get("rope_theta") is not None:
        theta = checked("rope_theta", value["rope_theta"], path)
    numbers = {name: checked(name, value[name], path) for name in wanted}
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(factor=numbers["factor"], kind="linear")
    if kind == "dynamic":
        original = _original_of_dynamic(key, value, file)
        return theta, RopeScaling(numbers["factor"], original_context=original, kind="dynamic")
    original = numbers.pop("original_max_position_embeddings")
    return theta, RopeScaling(**numbers, original_context=original)


def _original_of_dynamic(key: str, value: Mapping[str, Any], file: _File) -> int:
    """max_position_embeddings, from which transformers counts whatever else is stated."""
    stated = value.get("original_max_position_embeddings")
    if stated is not None and stated != file.max_positions:
        raise CheckpointError(
            f"{file.path}: {key} has original_max_position_embeddings {short(stated)}, but "
            f"rope_type dynamic begins at max_position_embeddings {file.max_positions}; remove it "
            f"or make both the same"
        )
    return file.max_positions


def _kind(key: str, value: Mapping[str, Any], path: Path) -> str:
    named = {name: value[name] for name in ("rope_type", "type") if value.get(name) is not None}
    kinds = list(named.values()) or ["default"]
    if any(kind != kinds[0] for kind in kinds):
        raise CheckpointError(f"{path}: rope_type and type in {key} contradict each other")
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise CheckpointError(
            f"{path}: rope_type {short(kind)} in {key} is not run; known: {', '.join(_NUMBERS)}"
        )
    return kind
