"""What every parameter of every rank must hold, cut from whole tensors without the loader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llama.config import ModelConfig
from llama.layers.parameter import pieces
from llama.models.decoder import DecoderStage, stage_of
from llama.quant.base import DENSE, LinearMethod
from tests.helpers.stages import Place


def stage_at(
    config: ModelConfig,
    tp: int,
    pp: int,
    rank: int,
    *,
    dtype: torch.dtype = torch.float32,
    method: LinearMethod = DENSE,
) -> DecoderStage:
    """The stage of one rank; making and filling it needs a place on the tp axis, not a peer."""
    pp_rank, tp_rank = divmod(rank, tp)
    stage = stage_of(config, pp_size=pp, pp_rank=pp_rank)
    return DecoderStage(
        config, stage, tp=Place(tp_rank, tp), dtype=dtype, max_positions=8, method=method
    )


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def expected(parameter: Any, weights: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """What a parameter should hold, cut from the whole tensors."""
    out = torch.zeros(parameter.shape)
    for piece, name in zip(parameter.shard.pieces, names, strict=True):
        part = weights[name]
        if piece.dim is None:
            out.copy_(part)
        else:
            rows = list(range(piece.start, piece.stop))
            here = torch.arange(piece.offset, piece.offset + len(rows))
            out.index_copy_(
                piece.dim, here, part.index_select(piece.dim, torch.tensor(rows, dtype=torch.long))
            )
    return out


def digests(stage: DecoderStage) -> dict[str, str]:
    """sha256 of every parameter."""
    return {path: digest(parameter) for path, parameter in stage.named_parameters()}


def expected_digests(stage: DecoderStage, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The same, had `stage` been filled."""
    names: dict[int, list[str]] = {}
    for parameter, _, name in pieces(stage):
        names.setdefault(id(parameter), []).append(name)
    return {
        path: digest(expected(parameter, weights, names.get(id(parameter), [])))
        for path, parameter in stage.named_parameters()
    }
