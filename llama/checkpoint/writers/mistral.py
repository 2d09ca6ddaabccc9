"""Mistral's own format: params.json and one consolidated.safetensors.

Names and rotary pairs are Meta's. Their inference package knows no biases, no stretched RoPE and no
tied head, which is therefore stored twice.
"""

from __future__ import annotations

from typing import Any

from llama.checkpoint.formats.mistral import PARAMS, SAFETENSORS
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers.output_file import Plan, SafetensorsFile, TextFile
from llama.checkpoint.writers.source import Options, Source, refuse
from llama.config import ModelConfig


def plan(reader: CheckpointReader, options: Options) -> Plan:
    """The files. Raises UsageError for a model that the format cannot hold."""
    config = reader.config
    refuse(
        config,
        "mistral",
        {
            "it has learned positions and biases": config.architecture == "gpt2",
            "it has biases": config.architecture != "gpt2"
            and (config.attention_bias or config.mlp_bias),
            "its RoPE is scaled": config.rope_scaling is not None,
        },
        possible="--to hf, --to megatron",
    )
    source = Source(reader, "interleaved", options.dtype)
    tensors = {name: source.output(name, source.rows(name)) for name in reader.tensors}
    return Plan([SafetensorsFile(SAFETENSORS, tensors)], [TextFile.json(PARAMS, _params(config))])


def _params(config: ModelConfig) -> dict[str, Any]:
    window = config.sliding_window
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.ffn_dim,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
    }
    if window is not None:
        params["sliding_window"] = list(window) if isinstance(window, tuple) else window
    return params
