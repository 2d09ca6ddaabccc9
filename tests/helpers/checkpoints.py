"""Random models, and checkpoints of them in the layouts that publishers use.

Weights are full tensors under canonical names ("layers.0.attention.wq.weight"). Cutting them into
files is written out here a second time, on purpose: a reader is not tested by its own tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.config import ModelConfig

Weights = dict[str, Tensor]

COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3")
ROW_PARALLEL = ("wo", "w2")


def tiny_config(**changes: Any) -> ModelConfig:
    """A Llama whose sizes 1, 2, 4 or 8 files can share."""
    sizes: dict[str, Any] = {
        "dim": 32,
        "n_layers": 3,
        "n_heads": 8,
        "n_kv_heads": 8,
        "head_dim": 4,
        "ffn_dim": 48,
        "vocab_size": 64,
    }
    return ModelConfig(**{**sizes, **changes})


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> full shape of every tensor of a model, in the order of Meta's files."""
    dim, ffn_dim = config.dim, config.ffn_dim
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    linears = {
        "attention.wq": (q_dim, dim),
        "attention.wk": (kv_dim, dim),
        "attention.wv": (kv_dim, dim),
        "attention.wo": (dim, q_dim),
        "feed_forward.w1": (ffn_dim, dim),
        "feed_forward.w2": (dim, ffn_dim),
        "feed_forward.w3": (ffn_dim, dim),
    }
    found: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for layer in range(config.n_layers):
        for name, shape in linears.items():
            found[f"layers.{layer}.{name}.weight"] = shape
            has_bias = config.attention_bias if "attention" in name else config.mlp_bias
            if has_bias:
                found[f"layers.{layer}.{name}.bias"] = shape[:1]
        found[f"layers.{layer}.attention_norm.weight"] = (dim,)
        found[f"layers.{layer}.ffn_norm.weight"] = (dim,)
    return {**found, "norm.weight": (dim,), "output.weight": (config.vocab_size, dim)}


def random_model(config: ModelConfig, seed: int = 0) -> Weights:
    """fp32 weights whose greedy choices are far apart, so that rounding does not change them.

    Matrices keep the size of their input; the head is larger by a factor, which spreads the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes(config).items():
        weight = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.1 * weight
        elif name.endswith("bias"):
            weights[name] = 0.1 * weight
        elif name == "tok_embeddings.weight":
            weights[name] = weight
        else:
            gain = 4.0 if name == "output.weight" else 1.5
            weights[name] = weight * (gain / math.sqrt(shape[1]))
    if config.tied_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The params.json of `config`, with every size spelled out."""
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_dim": config.ffn_dim,
        "vocab_size": -1,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    if config.rope_scaling is not None:
        params |= {
            "use_scaled_rope": True,
            "rope_scaling_factor": config.rope_scaling.factor,
            "rope_high_freq_factor": config.rope_scaling.high_freq_factor,
        }
    return params


def split_dim(name: str, *, embedding_split: int) -> int | None:
    """The dim along which Meta's files share a tensor; None when every file has it whole."""
    if name == "tok_embeddings.weight":
        return embedding_split
    if name == "output.weight":
        return 0
    layer, kind = name.split(".")[-2:]
    if layer in COLUMN_PARALLEL:
        return 0
    return 1 if layer in ROW_PARALLEL and kind == "weight" else None


def meta_file(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    number: int,
    n_files: int,
    embedding_split: int,
) -> Weights:
    """What file `number` of `n_files` holds; with more files than KV heads, a copy of one head."""
    held: Weights = {}
    for name, weight in weights.items():
        dim = split_dim(name, embedding_split=embedding_split)
        if dim is None:
            held[name] = weight
        elif name.split(".")[-2] in ("wk", "wv") and n_files > config.n_kv_heads:
            held[name] = weight.chunk(config.n_kv_heads)[number * config.n_kv_heads // n_files]
        else:
            assert weight.shape[dim] % n_files == 0, f"{n_files} files cannot share {name}"
            held[name] = weight.chunk(n_files, dim)[number]
    return {name: part.clone() for name, part in held.items()}


def write_meta(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    n_files: int = 1,
    embedding_split: int = 0,
    dtype: torch.dtype = torch.float32,
    params_extra: Mapping[str, Any] | None = None,
    rope_freqs: bool = True,
) -> Path:
    """Write `weights` to the folder `path` as Meta would, in `n_files`; returns `path`.

    `embedding_split` is 1 for files like Llama 1 and 2, 0 for files like Llama 3. A key of
    `params_extra` replaces the one of params.json, None removes it.
    """
    path.mkdir(parents=True, exist_ok=True)
    params = params_of(config) | dict(params_extra or {})
    kept = {key: value for key, value in params.items() if value is not None}
    (path / "params.json").write_text(json.dumps(kept))
    for number in range(n_files):
        held = meta_file(
            config, weights, number=number, n_files=n_files, embedding_split=embedding_split
        )
        held = {name: part.to(dtype) for name, part in held.items()}
        if rope_freqs:
            held["rope.freqs"] = torch.ones(config.head_dim // 2, dtype=dtype)
        torch.save(held, path / f"consolidated.{number:02d}.pth")
    return path
