"""The config.json and generation_config.json that transformers 4 and 5 both read.

Version 5 reads the old spelling of the rotary embedding and of the dtype, version 4 not the new
one, so the old one is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llama.checkpoint.files.names import plain_file
from llama.checkpoint.wording import dtype_name
from llama.config import ModelConfig
from llama.errors import UsageError
from llama.files.json_file import read_object

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# (architecture, vocab_size) -> ids of the tokenizers that Meta, Mistral and OpenAI published.
_KNOWN_IDS: Mapping[tuple[str, int], Mapping[str, Any]] = {
    ("llama", 32000): {"bos_token_id": 1, "eos_token_id": 2},
    ("llama", 32016): {"bos_token_id": 1, "eos_token_id": 2},
    ("llama", 32768): {"bos_token_id": 1, "eos_token_id": 2},
    ("llama", 128256): {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
    ("gpt2", 50257): {"bos_token_id": 50256, "eos_token_id": 50256},
}


def special_ids(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """Ids of the special tokens: by config.json or generation_config.json in `folder`, else by the
    vocabulary; empty when it is of no known tokenizer.

    Raises CheckpointError for a file that cannot be read.
    """
    for name in (CONFIG, GENERATION_CONFIG):
        path = plain_file(folder, name)
        if path.is_file():
            given = read_object(path)
            return {key: given[key] for key in _ID_KEYS if _is_id(given.get(key))}
    return dict(_KNOWN_IDS.get((config.architecture, config.vocab_size), {}))


def hf_config(
    config: ModelConfig, *, dtype: torch.dtype, is_tied: bool, ids: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json. Raises UsageError for windows that differ between layers."""
    common = {
        "torch_dtype": dtype_name(dtype),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": is_tied,
        "use_cache": True,
        "bos_token_id": ids.get("bos_token_id"),
        "eos_token_id": ids.get("eos_token_id"),
    }
    if "pad_token_id" in ids:
        common["pad_token_id"] = ids["pad_token_id"]
    return (_gpt2 if config.architecture == "gpt2" else _llama)(config) | common


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": None if config.ffn_dim == 4 * config.dim else config.ffn_dim,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
    }


def _llama(config: ModelConfig) -> dict[str, Any]:
    windows = set(config.windows)
    if len(windows) > 1:
        raise UsageError(
            f"the hf format cannot hold the sliding windows {config.sliding_window}, which differ "
            f"between layers. Possible: --to mistral"
        )
    (window,) = windows
    spelled = {
        "architectures": ["LlamaForCausalLM" if window is None else "MistralForCausalLM"],
        "model_type": "llama" if window is None else "mistral",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _positions(config),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
    }
    if window is not None:
        return spelled | {"sliding_window": window}
    return spelled | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found["low_freq_factor"] = scaling.low_freq_factor
        found["high_freq_factor"] = scaling.high_freq_factor
        found["original_max_position_embeddings"] = scaling.original_context
    return found


def _positions(config: ModelConfig) -> int:
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        return scaling.original_context  # which has no key of its own
    return config.max_positions or _claimed_positions(config)


def _claimed_positions(config: ModelConfig) -> int:
    """How far the published model of this kind goes; Meta's and Mistral's files do not say.

    It is only what config.json claims: the weights have no limit of their own.
    """
    if config.rope_scaling is not None:
        return 131072  # Llama 3.1 and later
    if config.sliding_window is not None or config.vocab_size == 32768:
        return 32768  # Mistral
    if config.vocab_size == 128256:
        return 8192  # Llama 3
    if config.rope_theta >= 1e6:
        return 16384  # Code Llama
    return 2048 if config.norm_eps == 1e-6 else 4096  # Llama 1, Llama 2


def _is_id(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(type(number) is int for number in ids)
