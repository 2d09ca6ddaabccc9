"""Parameters that know which slices of a checkpoint they hold.

They are made without memory, on the meta device, and get it once, in their final dtype and place.
Filling them is the loader's work.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from llama.parallel.shard import Piece, Shard
from llama.quant.base import MakeIntake, Memory


def sharded_parameter(
    shard: Shard,
    *,
    dtype: torch.dtype,
    shape: tuple[int, ...] | None = None,
    intake: MakeIntake | None = None,
) -> nn.Parameter:
    """A parameter on the meta device, with `shard` as its attribute.

    It has shard.shape, or `shape` where what `shard` asks for lies otherwise in memory; `intake`,
    kept as an attribute too, is then what brings it there.
    """
    shape = shard.shape if shape is None else shape
    return _attach(torch.empty(shape, dtype=dtype, device="meta"), shard, intake)


def scales_parameter(memory: Memory) -> nn.Parameter:
    """A parameter on the meta device that another one's intake fills; zero until then."""
    return sharded_parameter(Shard(memory.shape, ()), dtype=memory.dtype)


def shard_of(parameter: nn.Parameter) -> Shard:
    """What a parameter from `sharded_parameter` holds."""
    shard = getattr(parameter, "shard", None)
    assert isinstance(shard, Shard)
    return shard


def materialize(module: nn.Module, device: torch.device) -> None:
    """Give every meta parameter memory on `device`: zeros where padded, else uninitialised.

    A parameter that two modules share stays shared.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in made:
                    made[parameter] = _with_memory(parameter, device)
                setattr(owner, name, made[parameter])


def _with_memory(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    shard = shard_of(parameter)
    make = torch.zeros if shard.is_padded else torch.empty
    data = make(parameter.shape, dtype=parameter.dtype, device=device)
    return _attach(data, shard, getattr(parameter, "intake", None))


def pieces(module: nn.Module) -> Iterator[tuple[nn.Parameter, Piece, str]]:
    """Every slice that `module` needs: its parameter, the piece, and the full tensor's name.

    The name is that of the module which owns the layer, then the piece's source: the "wq.weight"
    piece of layers.3.attention.wqkv.weight is layers.3.attention.wq.weight. A shared parameter
    comes once, under the first module that has it.
    """
    for path, parameter in module.named_parameters():
        owner = path.rpartition(".")[0]
        prefix = owner[: owner.rfind(".") + 1]
        for piece in shard_of(parameter).pieces:
            yield parameter, piece, prefix + piece.source


def _attach(data: torch.Tensor, shard: Shard, intake: MakeIntake | None) -> nn.Parameter:
    parameter = nn.Parameter(data, requires_grad=False)
    parameter.shard = shard  # type: ignore[attr-defined]
    parameter.intake = intake  # type: ignore[attr-defined]
    return parameter
