"""Checkpoints as Mistral publishes them: one file, every size spelled out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama.config import ModelConfig


def mistral_params(config: ModelConfig) -> dict[str, Any]:
    """The params.json of `config`."""
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
    if config.sliding_window is not None:
        params["sliding_window"] = config.sliding_window
    return params


def write_mistral(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    container: Literal["pth", "safetensors"] = "safetensors",
    dtype: torch.dtype = torch.float32,
    params_extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `weights` to the folder `path`, of interleaved RoPE; returns `path`.

    A key of `params_extra` replaces the one of params.json, None removes it.
    """
    path.mkdir(parents=True, exist_ok=True)
    params = mistral_params(config) | dict(params_extra or {})
    kept = {key: value for key, value in params.items() if value is not None}
    (path / "params.json").write_text(json.dumps(kept))
    held = {name: weight.to(dtype).contiguous() for name, weight in weights.items()}
    if container == "pth":
        torch.save(held, path / "consolidated.00.pth")
    else:
        save_file(held, path / "consolidated.safetensors", metadata={"format": "pt"})
    return path
