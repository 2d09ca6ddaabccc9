"""The arguments a Megatron model was trained with: what each may be, and what is refused.

They come from the `args` in its files and, where those have none, from `megatron_args.json` beside
them. Only what changes the maths is looked at; what the values make is known in megatron_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.wording import shortened
from llama.errors import CheckpointError
from llama.files.json_file import read_object

ARGUMENTS_FILE = "megatron_args.json"

_INTEGERS = {
    "num_layers": 2**14,
    "hidden_size": 2**20,
    "ffn_hidden_size": 2**24,
    "num_attention_heads": 2**16,
    "num_query_groups": 2**16,
    "kv_channels": 2**16,
    "max_position_embeddings": 2**28,
    "padded_vocab_size": 2**28,
    "vocab_size": 2**28,
    "orig_vocab_size": 2**28,
    "tensor_model_parallel_size": 10**4,
    "pipeline_model_parallel_size": 10**4,
}
_NUMBERS = {
    "layernorm_epsilon": (1e-30, 1.0),
    "norm_epsilon": (1e-30, 1.0),
    "rotary_base": (1.0, 1e15),
    "rotary_percent": (0.0, 1.0),
    "rotary_seq_len_interpolation_factor": (1e-3, 1e6),
    "rope_scaling_factor": (1e-3, 1e6),
}
_FLAGS = (
    "group_query_attention", "swiglu", "untie_embeddings_and_output_weights", "bias_gelu_fusion",
    "openai_gelu", "rotary_interleaved", "use_rotary_position_embeddings", "use_rope_scaling",
    "add_bias_linear",
)  # fmt: skip
_TEXTS = ("position_embedding_type", "normalization")
_KNOWN = (*_INTEGERS, *_NUMBERS, *_FLAGS, *_TEXTS)

# Argument -> what it switches on. None, false, 0 and empty ones switch it off.
_REFUSED = {
    "num_experts": "a mixture of experts; use a dense model",
    "multi_query_attention": "key and value projections of their own; use Megatron core's groups",
    "multi_latent_attention": "multi-latent attention; use a model with plain heads",
    "apply_layernorm_1p": "norms whose weight counts from 1; add 1 to their weights and unset it",
    "layernorm_zero_centered_gamma": "norms whose weight counts from 1; use a model without",
    "apply_residual_connection_post_layernorm": "residuals after the norm; use a model without",
    "qk_layernorm": "normalised queries and keys; use a model without",
    "squared_relu": "another activation; use a model with GELU or SwiGLU",
    "quick_geglu": "another activation; use a model with GELU or SwiGLU",
    "geglu": "another activation; use a model with GELU or SwiGLU",
    "window_size": "a sliding attention window; use a model with full attention",
    "no_rope_freq": "layers without positions; use a model with RoPE in every layer",
    "mtp_num_layers": "multi-token prediction; use a model without",
    "retro_add_retriever": "retrieval; use a GPT model",
    "hybrid_override_pattern": "layers of other kinds; use a model with attention in every layer",
    "attention_output_gate": "gated attention; use a model without",
    "softmax_type": "another softmax; use a model with the plain one",
    "glu_linear_offset": "a shifted SwiGLU; use a model without",
    "activation_func_clamp_value": "a clamped activation; use a model without",
    "use_mup": "scales of maximal update parametrisation; use a model without",
    "rope_type": "another way to stretch RoPE; use a model with the plain one",
    "window_attn_skip_freq": "a sliding attention window; use a model with full attention",
}
_NEUTRAL = {
    "softmax_type": ("vanilla",),
    "rope_type": ("rope",),
    "window_size": ((-1, -1), [-1, -1]),
}


@dataclass(frozen=True)
class Arguments:
    """Checked arguments by Megatron's names, absent where nothing was said; `source` for messages.

    Values are never None: Megatron's None is absence.
    """

    source: str
    values: Mapping[str, Any]

    def integer(self, name: str) -> int | None:
        value = self.values.get(name)
        return None if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        return float(self.values.get(name, default))

    def flag(self, name: str, *, default: bool = False) -> bool:
        return bool(self.values.get(name, default))

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return None if value is None else str(value)


def read_arguments(path: Path, stored: Mapping[str, Any], folders: list[Path]) -> Arguments:
    """What the checkpoint file at `path` has `stored`, completed from ARGUMENTS_FILE in the first
    of `folders` that has one.

    Raises CheckpointError for a value that is not possible, given twice or not implemented.
    """
    values = _checked(stored, f"{path} (args)")
    beside = next((f / ARGUMENTS_FILE for f in folders if (f / ARGUMENTS_FILE).is_file()), None)
    if beside is None:
        return Arguments(f"the args in {path}", values)
    given = read_object(beside)
    unknown = sorted(given.keys() - {*_KNOWN, *_REFUSED})
    if unknown:
        raise CheckpointError(
            f"{beside} has unknown keys {shortened(unknown)}; known: {', '.join(sorted(_KNOWN))}"
        )
    more = _checked(given, str(beside))
    at_odds = [key for key in more if key in values and values[key] != more[key]]
    if at_odds:
        key = at_odds[0]
        raise CheckpointError(
            f"{beside} gives {key} {more[key]!r}, but the args in {path} {values[key]!r}; remove "
            f"what is wrong"
        )
    return Arguments(str(beside), {**values, **more})


def _checked(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    for key, what in _REFUSED.items():
        if key in given and not _is_off(given[key]) and given[key] not in _NEUTRAL.get(key, ()):
            raise CheckpointError(f"{source}: {key} {shown(given[key])} means {what}")
    experts = given.get("expert_model_parallel_size")
    if type(experts) is int and experts > 1:
        raise CheckpointError(
            f"{source}: expert_model_parallel_size {experts} means a mixture of experts; use a "
            f"dense model"
        )
    if given.get("add_qkv_bias") is True and given.get("add_bias_linear") is False:
        raise CheckpointError(
            f"{source}: add_qkv_bias without add_bias_linear means biases on queries, keys and "
            f"values alone; use a model with biases on all linears of attention, or on none"
        )
    found = {key: given[key] for key in _KNOWN if given.get(key) is not None}
    for key, value in found.items():
        problem = _problem(key, value)
        if problem is not None:
            raise CheckpointError(f"{source}: {key} must be {problem}, not {shown(value)}")
    if found.get("rotary_percent", 1.0) != 1.0:
        raise CheckpointError(
            f"{source}: rotary_percent {found['rotary_percent']} means positions in a part of "
            f"each head; use a model with RoPE in whole heads"
        )
    return found


def _problem(key: str, value: Any) -> str | None:
    """What `value` should be instead; None when it is possible."""
    if key in _INTEGERS:
        is_right = type(value) is int and 1 <= value <= _INTEGERS[key]
        return None if is_right else f"an integer from 1 to {_INTEGERS[key]:,}"
    if key in _NUMBERS:
        low, high = _NUMBERS[key]
        is_right = type(value) in (int, float) and low <= value <= high
        return None if is_right else f"a number from {low:g} to {high:g}"
    if key in _FLAGS:
        return None if type(value) is bool else "true or false"
    return None if type(value) is str else "text"


def _is_off(value: Any) -> bool:
    return value is None or (type(value) in (bool, int, float, str) and not value)


def shown(value: object) -> str:
    """`value` for a message, by its kind where it is no scalar or an integer beyond any use."""
    is_huge = (
        type(value) is int and value.bit_length() > 128
    )  # Python refuses to write some of them
    is_scalar = type(value) in (bool, int, float, str) and not is_huge
    text = repr(value) if is_scalar else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
