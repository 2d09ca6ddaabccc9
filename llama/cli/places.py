"""Where every tensor goes on a layout: its stage, and the shape that each tp rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama.models.decoder import stage_of
from llama.parallel.shard import ffn_shard, head_shard, vocab_shard

if TYPE_CHECKING:
    from llama.checkpoint.inspect import TensorEntry
    from llama.config import ModelConfig


def places(
    config: ModelConfig, tensors: Sequence[TensorEntry], *, tp_size: int, pp_size: int
) -> list[tuple[int, list[list[int]]]]:
    """(stage, shape on each tp rank) of every tensor. Raises UsageError for no possible layout."""
    stages = [stage_of(config, pp_size=pp_size, pp_rank=rank) for rank in range(pp_size)]
    stage_of_layer = {layer: rank for rank, stage in enumerate(stages) for layer in stage.layers}
    found = []
    for entry in tensors:
        head, *rest = entry.name.split(".")
        stage = stage_of_layer[int(rest[0])] if head == "layers" else 0
        if head in ("norm", "output"):
            stage = pp_size - 1
        shapes = [
            _local_shape(config, entry, tp_size=tp_size, tp_rank=rank) for rank in range(tp_size)
        ]
        found.append((stage, shapes))
    return found


def _local_shape(
    config: ModelConfig, entry: TensorEntry, *, tp_size: int, tp_rank: int
) -> list[int]:
    """The shape of the slice that a tp rank takes of the tensor, padding left out."""
    shape = list(entry.shape)
    if entry.split is None:
        return shape
    layer = entry.name.split(".")[-2]
    heads = head_shard(config.n_heads, config.n_kv_heads, tp_size=tp_size, tp_rank=tp_rank)
    if layer in ("wq", "wo"):
        size = len(heads.rows(config.head_dim))
    elif layer in ("wk", "wv"):
        size = len(heads.kv_rows(config.head_dim))
    elif layer in ("w1", "w2", "w3"):
        size = len(ffn_shard(config.ffn_dim, tp_size=tp_size, tp_rank=tp_rank))
    else:
        rows = vocab_shard(entry.name, entry.shape, tp_size=tp_size, tp_rank=tp_rank)
        size = sum(piece.stop - piece.start for piece in rows.pieces)
    shape[entry.split] = size
    return shape
