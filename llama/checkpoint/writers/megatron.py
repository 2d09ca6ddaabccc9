"""Megatron-LM's per-rank format, checkpoint_version 3.0: the legacy tree for GPT-2, the names of
Megatron core for Llama.
"""

from __future__ import annotations

from llama.checkpoint.formats.megatron_dir import (
    MODEL_FILES,
    TRACKER,
    iteration_folder,
    rank_folder,
)
from llama.checkpoint.reader import CheckpointReader
from llama.checkpoint.writers.megatron_args import arguments
from llama.checkpoint.writers.megatron_rank import MegatronRank
from llama.checkpoint.writers.output_file import Plan, TextFile
from llama.checkpoint.writers.source import Options, Source, refuse
from llama.checkpoint.writers.torch_archive import TorchFile
from llama.config import ModelConfig, RopeScaling
from llama.errors import UsageError

_VERSION = 3.0
_FOLDER = iteration_folder(None)


def plan(reader: CheckpointReader, options: Options) -> Plan:
    """The files. Raises UsageError for a model that the format cannot hold or cut so."""
    config, tp, pp = reader.config, options.tp, options.pp
    _refuse(config)
    _check_layout(config, tp, pp)
    source = Source(reader, "half", options.dtype)
    dtype = options.dtype or reader.dtype
    args = arguments(config, tp=tp, pp=pp, dtype=dtype, is_tied=source.is_tied)
    common = {"args": args, "checkpoint_version": _VERSION, "iteration": 0}
    files = []
    for pp_rank in range(pp):
        for tp_rank in range(tp):
            rank = MegatronRank(source, tp=tp, pp=pp, tp_rank=tp_rank, pp_rank=pp_rank)
            folder = rank_folder(tp_rank, pp_rank, pp_size=pp)
            name = f"{_FOLDER}/{folder}/{MODEL_FILES[0]}"
            files.append(TorchFile(name, {**common, "model": rank.model()}))
    return Plan(files, [TextFile(TRACKER, _FOLDER)])


def _refuse(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    refuse(
        config,
        "megatron",
        {
            "it has a sliding window": config.sliding_window is not None,
            "only its attention or only its feed-forward has biases": config.attention_bias
            != config.mlp_bias,
            "its RoPE is scaled by a fraction": scaling is not None
            and scaling.kind == "linear"
            and not float(scaling.factor).is_integer(),
            "its RoPE is scaled otherwise than Llama 3's": scaling is not None
            and scaling.kind != "linear"
            and scaling != RopeScaling(factor=scaling.factor),
        },
        possible="--to hf, --to mistral (no biases)",
    )


def _check_layout(config: ModelConfig, tp: int, pp: int) -> None:
    for what, size in (
        ("heads", config.n_heads),
        ("KV heads", config.n_kv_heads),
        ("feed-forward columns", config.ffn_dim),
    ):
        if size % tp:
            possible = [n for n in range(1, config.n_kv_heads + 1) if _divides(config, n)]
            raise UsageError(
                f"--tp {tp} does not divide the {size} {what} of the model; use "
                f"{' or '.join(map(str, possible))}"
            )
    if config.n_layers % pp:
        possible = [n for n in range(1, config.n_layers + 1) if config.n_layers % n == 0]
        raise UsageError(
            f"--pp {pp} does not divide the {config.n_layers} layers of the model; use "
            f"{' or '.join(map(str, possible))}"
        )


def _divides(config: ModelConfig, tp: int) -> bool:
    return not any(size % tp for size in (config.n_heads, config.n_kv_heads, config.ffn_dim))
