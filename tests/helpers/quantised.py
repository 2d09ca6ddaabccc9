"""What quantised layers must hold and compute, from whole tensors: no shard, no loader, no grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.reader import CheckpointReader
from llama.config import ModelConfig
from llama.layers.linear import ParallelLinear
from llama.quant.groups import dequantize, quantize

LINEARS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "output")


def is_linear(name: str) -> bool:
    """Whether the tensor is the weight of a linear layer, and so quantised."""
    return name.endswith(".weight") and name.split(".")[-2] in LINEARS


def quantised(weight: Tensor, *, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The whole matrix, its last group filled with zeros."""
    short = -weight.shape[1] % group_size
    return quantize(F.pad(weight.float(), (0, short)), bits=bits, group_size=group_size)


def rounded(weights: Mapping[str, Tensor], *, bits: int, group_size: int) -> dict[str, Tensor]:
    """`weights` with those of linear layers as their quantised values stand for them."""
    found = dict(weights)
    for name in filter(is_linear, weights):
        values, scales = quantised(weights[name], bits=bits, group_size=group_size)
        whole = dequantize(values, scales, bits=bits, group_size=group_size, dtype=torch.float32)
        found[name] = whole[:, : weights[name].shape[1]].contiguous()
    return found


def in_memory(config: ModelConfig, weights: Mapping[str, Tensor]) -> CheckpointReader:
    stored = {name: StoredTensor.of([MemoryTensor(tensor)]) for name, tensor in weights.items()}
    return CheckpointReader("memory", Path(), config, stored, ignored={})


def linears(stage: nn.Module) -> Iterator[tuple[str, ParallelLinear]]:
    """Every linear layer, and the name of what owns it, as in "layers.0.attention."."""
    for path, module in stage.named_modules():
        if isinstance(module, ParallelLinear):
            yield path[: path.rfind(".") + 1], module


def check_layer(
    owner: str,
    layer: ParallelLinear,
    weights: Mapping[str, Tensor],
    *,
    bits: int,
    group_size: int,
) -> set[str]:
    """Assert that values and scales are those of the whole tensors; returns the tensors' names."""
    assert layer.scales is not None
    names = set()
    scales_seen = 0
    for piece in layer.weight.shard.pieces:  # type: ignore[attr-defined]
        name = owner + piece.source
        names.add(name)
        values, scales = quantised(weights[name], bits=bits, group_size=group_size)
        if piece.dim == 0:
            here = slice(piece.offset, piece.offset + piece.stop - piece.start)
            values, scales = values[piece.start : piece.stop], scales[piece.start : piece.stop]
            held, held_scales = layer.weight[here], layer.scales[here]
        else:
            first, stop = piece.start // group_size, -(-piece.stop // group_size)
            wide = group_size * bits // 8
            values, scales = values[:, first * wide : stop * wide], scales[:, first:stop]
            held, held_scales = layer.weight, layer.scales
        assert torch.equal(held, values), name
        assert torch.equal(held_scales, scales), name
        scales_seen += scales.numel()
    if layer.scales.numel() > scales_seen:  # rows of no word
        assert not layer.scales.flatten()[scales_seen:].any()
    return names
