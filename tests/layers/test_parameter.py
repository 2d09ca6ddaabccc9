"""Parameters without memory, what they hold, and what each piece is called."""

from __future__ import annotations

import torch
from torch import nn

from llama.layers.parameter import materialize, pieces, shard_of, sharded_parameter
from llama.parallel.shard import replicated, stacked, vocab_shard

CPU = torch.device("cpu")


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shard = stacked(
            [("wa.weight", (6, 3), range(2)), ("wb.weight", (4, 3), range(1, 4))], dim=0
        )
        self.weight = sharded_parameter(shard, dtype=torch.bfloat16)
        self.bias = sharded_parameter(replicated("wa.bias", (5,)), dtype=torch.float32)


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"7": nn.ModuleDict({"wab": Leaf()})})
        self.top = Leaf()


def test_made_without_memory() -> None:
    leaf = Leaf()
    assert all(parameter.is_meta for parameter in leaf.parameters())
    assert not any(parameter.requires_grad for parameter in leaf.parameters())
    assert leaf.weight.shape == (5, 3)


def test_memory_comes_once_and_keeps_dtype_and_shard() -> None:
    leaf = Leaf()
    shards = [shard_of(parameter) for parameter in leaf.parameters()]
    materialize(leaf, CPU)
    assert [shard_of(parameter) for parameter in leaf.parameters()] == shards
    assert [parameter.dtype for parameter in leaf.parameters()] == [torch.bfloat16, torch.float32]
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in leaf.parameters())
    weight = leaf.weight
    materialize(leaf, CPU)
    assert leaf.weight is weight


def test_a_shared_parameter_stays_one_and_comes_once() -> None:
    tree = Tree()
    first, second = tree.layers["7"]["wab"], tree.top
    second.weight = first.weight
    assert [name for _, _, name in pieces(tree)][3:] == ["wa.bias"]
    materialize(tree, CPU)
    assert second.weight is first.weight and not first.weight.is_meta
    assert second.bias is not first.bias


def test_padding_is_zero() -> None:
    module = nn.Module()
    shard = vocab_shard("table.weight", (10, 64), tp_size=3, tp_rank=2)
    module.weight = sharded_parameter(shard, dtype=torch.float32)
    materialize(module, CPU)
    assert shard.is_padded
    assert not module.weight.any()


def test_pieces_are_named_after_the_owner_of_the_layer() -> None:
    assert [name for _, _, name in pieces(Tree())] == [
        "layers.7.wa.weight",
        "layers.7.wb.weight",
        "layers.7.wa.bias",
        "wa.weight",
        "wb.weight",
        "wa.bias",
    ]


def test_pieces_are_those_of_the_module_given() -> None:
    tree = Tree()
    found = list(pieces(tree.layers["7"]))
    assert [name for _, _, name in found] == ["wa.weight", "wb.weight", "wa.bias"]
    assert found[1][0] is tree.layers["7"]["wab"].weight
    assert (found[1][1].start, found[1][1].stop, found[1][1].offset) == (1, 4, 2)
