"""Checkpoints as Megatron-LM saves them: one pickle per rank, fused and cut, with all its clutter.

The cutting is written out here from full canonical tensors, apart from `llama.checkpoint`: a reader
is not tested by its own tables.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama.config import ModelConfig
from tests.helpers.megatron_trees import Names, Tree, stage_tree


@dataclass(frozen=True)
class MegatronFiles:
    """How a checkpoint is written. `stages` are layers per (virtual) stage, in model order.

    Names: "transformer" (2019), "encoder", "norm" (the last of the legacy tree), "core", and "te"
    (core with norms fused into linears). `version` None leaves the key out.
    """

    version: float | None = 3.0
    tp: int = 1
    pp: int = 1
    virtual: int = 1
    names: Names = "encoder"
    bare: bool = False
    with_args: bool = True
    args_extra: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[int] | None = None
    vocab_divisible_by: int = 128
    iteration: int | None = 1000
    dtype: torch.dtype = torch.float32
    zip_container: bool = True
    file_name: str = "model_optim_rng.pt"

    def layers_of(self, stage: int, n_layers: int) -> range:
        """The model's layers in `stage` of pp x virtual."""
        n_stages = self.pp * self.virtual
        sizes = list(self.stages or [n_layers // n_stages] * n_stages)
        assert len(sizes) == n_stages and sum(sizes) == n_layers, (sizes, n_layers)
        return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))

    def padded(self, vocab_size: int) -> int:
        unit = self.vocab_divisible_by * self.tp
        return -(-vocab_size // unit) * unit


def write_megatron(
    path: Path, config: ModelConfig, weights: Mapping[str, Tensor], **how: Any
) -> Path:
    """Write canonical `weights` to the folder `path`, see MegatronFiles; returns `path`."""
    files = MegatronFiles(**how)
    release = "release" if files.iteration is None else f"iter_{files.iteration:07d}"
    for tp_rank in range(files.tp):
        for pp_rank in range(files.pp):
            content = rank_content(config, weights, files, tp_rank=tp_rank, pp_rank=pp_rank)
            suffix = f"_{pp_rank:03d}" if files.pp > 1 else ""
            inside = "" if files.bare else f"{release}/mp_rank_{tp_rank:02d}{suffix}"
            folder = path / inside
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(
                content,
                folder / files.file_name,
                _use_new_zipfile_serialization=files.zip_container,
            )
    if not files.bare:
        tracked = "release" if files.iteration is None else str(files.iteration)
        (path / "latest_checkpointed_iteration.txt").write_text(tracked)
    return path


def rank_content(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    files: MegatronFiles,
    *,
    tp_rank: int,
    pp_rank: int,
) -> Tree:
    """Everything one rank saves."""
    content: Tree = {"iteration": files.iteration or 0, **clutter()}
    if files.version is not None:
        content["checkpoint_version"] = files.version
    if files.with_args:
        content["args"] = argparse.Namespace(**{**arguments(config, files), **files.args_extra})
    for chunk in range(files.virtual):
        stage = chunk * files.pp + pp_rank
        tensors = stage_tensors(config, weights, files, tp_rank=tp_rank, stage=stage)
        key = "model" if files.virtual == 1 else f"model{chunk}"
        content[key] = stage_tree(tensors, files.names)
    return content


def arguments(config: ModelConfig, files: MegatronFiles) -> Tree:
    """What Megatron keeps of its command line; a few of its hundreds."""
    is_gpt2 = config.architecture == "gpt2"
    is_grouped = config.n_kv_heads != config.n_heads
    found: Tree = {
        "num_layers": config.n_layers,
        "hidden_size": config.dim,
        "ffn_hidden_size": config.ffn_dim,
        "num_attention_heads": config.n_heads,
        "group_query_attention": is_grouped,
        "num_query_groups": config.n_kv_heads if is_grouped else 1,
        "kv_channels": config.head_dim,
        "max_position_embeddings": config.max_positions or 128,
        "padded_vocab_size": files.padded(config.vocab_size),
        "vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": files.vocab_divisible_by,
        "tensor_model_parallel_size": files.tp,
        "pipeline_model_parallel_size": files.pp,
        "virtual_pipeline_model_parallel_size": None if files.virtual == 1 else files.virtual,
        "expert_model_parallel_size": 1,
        "num_experts": None,
        "bias_gelu_fusion": config.activation == "gelu_tanh",
        "openai_gelu": False,
        "add_bias_linear": config.mlp_bias,
        "params_dtype": files.dtype,
        "fp16": False,
        "data_path": ["some/where_text_document"],
        "train_iters": 5000,
        "curriculum": SimpleNamespace(enabled=False),
    }
    if is_gpt2:
        return {**found, "layernorm_epsilon": config.norm_eps}
    return {
        **found,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "swiglu": True,
        "norm_epsilon": config.norm_eps,
        "rotary_base": int(config.rope_theta),
        "rotary_percent": 1.0,
        "rotary_interleaved": config.rope_style == "interleaved",
        "untie_embeddings_and_output_weights": not config.tied_embeddings,
    }


def clutter() -> Tree:
    """Optimizer and random states, as real files have them."""
    return {
        "optimizer": {
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
            "fp32_from_fp16_params": [[torch.ones(2, 2)]],
        },
        "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 7},
        "rerun_state_machine": SimpleNamespace(mode="off"),
        "rng_state": [
            {
                "random_rng_state": random.getstate(),
                "np_rng_state": np.random.get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            }
        ],
    }


def stage_tensors(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    files: MegatronFiles,
    *,
    tp_rank: int,
    stage: int,
) -> dict[str, Tensor]:
    """What one rank holds of one stage, under short names: "embedding", "0.qkv.weight", ..."""
    is_last = stage == files.pp * files.virtual - 1
    held: dict[str, Tensor] = {}
    embedding = padded(weights["tok_embeddings.weight"], files.padded(config.vocab_size))
    if stage == 0:
        held["embedding"] = embedding.chunk(files.tp)[tp_rank]
        if "pos_embeddings.weight" in weights:
            held["positions"] = weights["pos_embeddings.weight"]
    for local, layer in enumerate(files.layers_of(stage, config.n_layers)):
        own = {
            name.removeprefix(f"layers.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        for name, weight in layer_tensors(config, own, files, tp_rank=tp_rank).items():
            held[f"{local}.{name}"] = weight
    if is_last:
        for kind in ("weight", "bias"):
            if f"norm.{kind}" in weights:
                held[f"final_norm.{kind}"] = weights[f"norm.{kind}"]
        if not config.tied_embeddings:
            head = padded(weights["output.weight"], files.padded(config.vocab_size))
            held["head"] = head.chunk(files.tp)[tp_rank]
        elif files.pp > 1:
            held["head copy"] = embedding.chunk(files.tp)[tp_rank]
    return {name: weight.to(files.dtype).clone() for name, weight in held.items()}


def layer_tensors(
    config: ModelConfig, own: Mapping[str, Tensor], files: MegatronFiles, *, tp_rank: int
) -> dict[str, Tensor]:
    def piece(name: str, dim: int = 0) -> Tensor:
        return own[name].chunk(files.tp, dim)[tp_rank]

    held: dict[str, Tensor] = {}
    for norm in ("attention_norm", "ffn_norm"):
        both = (f"{norm}.{kind}" for kind in ("weight", "bias"))
        held |= {name: own[name] for name in both if name in own}
    held["wo.weight"] = piece("attention.wo.weight", 1)
    held["w2.weight"] = piece("feed_forward.w2.weight", 1)
    for kind in ("weight", "bias"):
        if f"attention.wq.{kind}" in own:
            held[f"qkv.{kind}"] = fused(
                *(piece(f"attention.{name}.{kind}") for name in ("wq", "wk", "wv")),
                version=files.version or 0.0,
                head_dim=config.head_dim,
            )
        if f"feed_forward.w1.{kind}" in own:
            ups = [f"feed_forward.{n}.{kind}" for n in ("w1", "w3")]
            held[f"up.{kind}"] = torch.cat([piece(up) for up in ups if up in own])
    for short, name in (("wo", "attention.wo.bias"), ("w2", "feed_forward.w2.bias")):
        if name in own:
            held[f"{short}.bias"] = own[name]
    return held


def fused(q: Tensor, k: Tensor, v: Tensor, *, version: float, head_dim: int) -> Tensor:
    """One shard of queries, keys and values in the order of a checkpoint version."""
    tail = q.shape[1:]
    if version < 2:
        heads = [x.reshape(-1, head_dim, *tail) for x in (q, k, v)]
        return torch.stack(heads, 0 if version < 1 else 2).reshape(-1, *tail)
    n_groups = k.shape[0] // head_dim
    groups = [x.reshape(n_groups, -1, *tail) for x in (q, k, v)]
    return torch.cat(groups, 1).reshape(-1, *tail)


def padded(weight: Tensor, rows: int) -> Tensor:
    return torch.cat([weight, weight[-1:].expand(rows - weight.shape[0], -1)])
