"""Parameters that know which slices of a checkpoint they hold.

They are made without memory, on the meta device, and get it once, in their final dtype and place.
Filling them is the loader's work.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from llama.parallel.shard import Piece, Shard


def sharded_parameter(shard: Shard, *, dtype: torch.dtype) -> nn.Parameter:
    """A parameter of shard.shape on the meta device, with `shard` as its attribute."""
    return _attach(torch.empty(shard.shape, dtype=dtype, device="meta"), shard)


def shard_of(parameter: nn.Parameter) -> Shard:
    """What a parameter from `sharded_parameter` holds."""
    shard = getattr(parameter, "shard", None)
    assert isinstance(shard, Shard)
    return shard


def materialize(module: nn.Module, device: torch.device) -> None:
    """Give every meta parameter memory on `device`: zeros where padded, else uninitialised."""
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                shard = shard_of(parameter)
                make = torch.zeros if shard.is_padded else torch.empty
                memory = make(shard.shape, dtype=parameter.dtype, device=device)
                setattr(owner, name, _attach(memory, shard))


def pieces(module: nn.Module) -> Iterator[tuple[nn.Parameter, Piece, str]]:
    """Every slice that `module` needs: its parameter, the piece, and the full tensor's name.

    The name is that of the module which owns the layer, then the piece's source: the "wq.weight"
    piece of layers.3.attention.wqkv.weight is layers.3.attention.wq.weight.
    """
    for path, owner in module.named_modules():
        prefix = path[: path.rfind(".") + 1]
        for parameter in owner.parameters(recurse=False):
            for piece in shard_of(parameter).pieces:
                yield parameter, piece, prefix + piece.source


def _attach(data: torch.Tensor, shard: Shard) -> nn.Parameter:
    parameter = nn.Parameter(data, requires_grad=False)
    parameter.shard = shard  # type: ignore[attr-defined]
    return parameter
