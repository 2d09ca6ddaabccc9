"""Whether a Megatron model's head is its embedding, which the last stage may hold once more.

A few rows tell a copy from a head of its own: no training leaves two matrices equal by chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama.checkpoint.canonical import EMBEDDING, HEAD
from llama.checkpoint.files.part import Part
from llama.checkpoint.formats.megatron_args import Arguments
from llama.checkpoint.formats.megatron_names import CORE, HEAD_COPY, LEGACY
from llama.checkpoint.formats.megatron_stages import MegatronModel, Shards
from llama.errors import CheckpointError

_COMPARED_ROWS = 2


def is_tied(model: MegatronModel, arguments: Arguments) -> bool:
    """By the arguments, or by what the last stage holds as a head, if anything."""
    if "untie_embeddings_and_output_weights" in arguments.values:
        return not arguments.flag("untie_embeddings_and_output_weights")
    return HEAD not in model.top or _is_copy(model.top[EMBEDDING], model.top[HEAD])


def checked_copies(model: MegatronModel) -> dict[str, str]:
    """Stored name -> why it is not read, for copies of a tied embedding.

    Raises CheckpointError for one that is not the embedding.
    """
    embedding = model.top[EMBEDDING]
    ignored: dict[str, str] = {}
    for name, spelling in ((HEAD, CORE), (HEAD_COPY, LEGACY)):
        copy = model.top.get(name)
        if copy is None:
            continue
        if not _is_copy(embedding, copy):
            raise CheckpointError(
                f"{copy[0].path}: {spelling.write(name)} should be a copy of the word embeddings "
                f"in {embedding[0].path}, but differs; they come from different checkpoints"
            )
        ignored[spelling.write(name)] = "a copy of the word embeddings"
    return ignored


def _is_copy(embedding: Shards, copy: Shards) -> bool:
    return all(
        one.shape == other.shape and torch.equal(_sample(one), _sample(other))
        for one, other in zip(embedding, copy, strict=True)
    )


def _sample(shard: Part) -> Tensor:
    """The first and the last rows."""
    ends = (shard.view(lambda g: g[:_COMPARED_ROWS]), shard.view(lambda g: g[-_COMPARED_ROWS:]))
    rows = [torch.empty(end.shape, dtype=end.dtype) for end in ends]
    for end, out in zip(ends, rows, strict=True):
        end.read_into(out)
    return torch.cat(rows)
