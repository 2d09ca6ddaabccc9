"""What a checkpoint reader gives, all of it in memory."""

from __future__ import annotations

import torch

from llama.checkpoint.reader import CheckpointReader
from tests.helpers.checkpoints import Weights


def contents(reader: CheckpointReader) -> Weights:
    """Every tensor in the dtype of the file."""
    found: Weights = {}
    for name, tensor in reader.tensors.items():
        found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        reader.read_into(found[name], name)
    return found


def assert_same(found: Weights, wanted: Weights) -> None:
    """The same names, each with the same bits."""
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
