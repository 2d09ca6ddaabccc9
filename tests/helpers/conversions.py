"""Conversions as a test asks for them, and every tensor of a folder in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert
from llama.checkpoint.writers.source import Options
from tests.helpers.checkpoints import Weights


def converted(source: Path, name: str, to: str, *, overwrite: bool = False, **how: Any) -> Path:
    """The folder `name` beside `source`, written as `to`; `how` are fields of Options."""
    reader = open_checkpoint(source)
    done = convert(reader, source.parent / name, to=to, options=Options(**how), overwrite=overwrite)
    reader.close()
    return done.folder


def tensors_of(folder: Path) -> Weights:
    """Canonical name -> tensor, as stored."""
    reader = open_checkpoint(folder)
    found: Weights = {}
    for name, tensor in reader.tensors.items():
        found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        reader.read_into(found[name], name)
    reader.close()
    return found


def assert_same(found: Weights, expected: Weights) -> None:
    """Names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
