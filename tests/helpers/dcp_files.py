"""Folders that torch.distributed.checkpoint itself writes, by one rank or by several."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llama.config import ModelConfig
from tests.helpers.checkpoints import Weights, params_of
from tests.helpers.hf_files import hf_config, hf_weights
from tests.helpers.ranks import RankInfo, run_ranks


def write_dcp(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    names: Literal["meta", "hf"] = "meta",
    prefix: str = "",
    n_ranks: int = 1,
    dtype: torch.dtype = torch.float32,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Write `weights` under Meta's or Hugging Face's names, and the configuration; returns `path`.

    Several ranks hold their matrices cut like tensor-parallel ones, and vectors along their only
    dim. `beside` is saved in the same state dict.
    """
    if names == "meta":
        stored, file, spelled = dict(weights), "params.json", params_of(config)
    else:
        stored, file, spelled = (
            hf_weights(config, weights, is_half=False), "config.json", hf_config(config),
        )  # fmt: skip
    state = {prefix + name: weight.to(dtype) for name, weight in stored.items()}
    if n_ranks == 1:
        save({**state, **(beside or {})}, path)
    else:
        run_ranks(_save_cut, n_ranks, state, str(path))
    (path / file).write_text(json.dumps(spelled))
    return path


def save(state: Mapping[str, Any], path: Path) -> None:
    """`torch.distributed.checkpoint.save` in this process alone."""
    import torch.distributed.checkpoint as dcp

    shutil.rmtree(path, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save(dict(state), checkpoint_id=path, no_dist=True)


def save_grid(info: RankInfo, weight: Tensor, path: str) -> None:
    """`weight` on a mesh of 2 x 2 ranks, cut along both dims; a job for run_ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    info.init_process_group()
    mesh = init_device_mesh("cpu", (2, 2))
    dcp.save({"tok_embeddings.weight": distribute_tensor(weight, mesh, [Shard(0), Shard(1)])},
             checkpoint_id=path)  # fmt: skip


def _save_cut(info: RankInfo, state: Weights, path: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    info.init_process_group()
    mesh = init_device_mesh("cpu", (info.world_size,))
    cut = {
        name: distribute_tensor(weight, mesh, [Shard(_dim(name, weight))])
        for name, weight in state.items()
    }
    dcp.save(cut, checkpoint_id=path)


def _dim(name: str, weight: Tensor) -> int:
    is_row = any(part in name for part in (".wo.", ".w2.", ".o_proj.", ".down_proj.", ".c_proj."))
    return 1 if is_row and weight.dim() == 2 else 0
