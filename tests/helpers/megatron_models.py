"""The two models that Megatron's tests write, and what those tests do with a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.reader import CheckpointReader
from llama.config import ModelConfig
from llama.errors import CheckpointError
from tests.helpers.checkpoints import Weights, random_model, tiny_config
from tests.helpers.gpt2_weights import random_gpt2, tiny_gpt2_config

GPT2 = tiny_gpt2_config(n_layers=4)
GPT2_WEIGHTS = random_gpt2(GPT2)
LLAMA = tiny_config(n_layers=4, n_kv_heads=4, rope_style="half", max_positions=128)
LLAMA_WEIGHTS = random_model(LLAMA)
ITERATION = "iter_0001000"

Change = Callable[[dict[str, Any]], object]


def assert_reads(reader: CheckpointReader, config: ModelConfig, weights: Weights) -> None:
    """Every tensor of `weights`, bit by bit in the stored dtype, and nothing else."""
    assert reader.config == config
    assert set(reader.tensors) == set(weights)
    for name, weight in weights.items():
        stored = reader.tensors[name]
        out = torch.empty(stored.shape, dtype=stored.dtype)
        reader.read_into(out, name)
        assert torch.equal(out, weight.to(stored.dtype)), name
    reader.close()


def message_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def edit(folder: Path, change: Change, *, rank: str = "mp_rank_00") -> Path:
    """Apply `change` to the content of one rank's file, whose path is returned."""
    path = folder / ITERATION / rank / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)
    return path
