"""Every linear layer on real ranks equals the plain product, with bias and uneven parts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama.errors import UsageError
from llama.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from llama.layers.parameter import materialize
from llama.parallel.comm import Communicator
from llama.parallel.context import ParallelContext
from llama.parallel.layout import partition
from tests.helpers.cases import run_cases
from tests.helpers.fill import fill
from tests.helpers.ranks import run_layout
from tests.helpers.stages import Place

CPU = torch.device("cpu")
N_ROWS, IN_FEATURES = 5, 23
TP_SIZES = [1, 2, 3, 4]


def full_tensors(*layers: tuple[str, int, int]) -> dict[str, Tensor]:
    """The same on every rank: weight and a bias too large to be counted twice unseen."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, out_features, in_features in layers:
        tensors[f"{name}.weight"] = torch.randn(out_features, in_features, generator=generator)
        tensors[f"{name}.bias"] = 10 * torch.randn(out_features, generator=generator)
    return tensors


def plain(x: Tensor, tensors: dict[str, Tensor], name: str, *, bias: bool) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"] if bias else None)


def rows(width: int) -> Tensor:
    return torch.randn(N_ROWS, width, generator=torch.Generator().manual_seed(1))


def take(x: Tensor, part: range) -> Tensor:
    return x[:, part.start : part.stop]


def column(
    context: ParallelContext, out_features: int, bias: bool, parts: list[range] | None
) -> None:
    tensors, x = full_tensors(("wa", out_features, IN_FEATURES)), rows(IN_FEATURES)
    expected = plain(x, tensors, "wa", bias=bias)
    own = (parts or partition(out_features, context.tp.size))[context.tp.rank]
    for gather_output in (False, True):
        layer = ColumnParallelLinear(
            IN_FEATURES,
            out_features,
            bias=bias,
            tp=context.tp,
            gather_output=gather_output,
            name="wa",
            dtype=torch.float32,
            parts=parts,
        )
        materialize(layer, CPU)
        fill(layer, tensors)
        wanted = expected if gather_output else take(expected, own)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tp", TP_SIZES)
def test_column_parallel(tp: int) -> None:
    run_cases(column, [(*case, None) for case in product((12, 13), (False, True))], tp=tp)


def test_column_parallel_with_given_parts() -> None:
    run_layout(column, 13, True, [range(1), range(1, 11), range(11, 13)], tp=3)


def row(context: ParallelContext, in_features: int, bias: bool, parts: list[range] | None) -> None:
    tensors, x = full_tensors(("wa", 7, in_features)), rows(in_features)
    own = (parts or partition(in_features, context.tp.size))[context.tp.rank]
    for input_is_parallel in (False, True):
        layer = RowParallelLinear(
            in_features,
            7,
            bias=bias,
            tp=context.tp,
            input_is_parallel=input_is_parallel,
            name="wa",
            dtype=torch.float32,
            parts=parts,
        )
        materialize(layer, CPU)
        fill(layer, tensors)
        found = layer(take(x, own) if input_is_parallel else x)
        expected = plain(x, tensors, "wa", bias=bias)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tp", TP_SIZES)
def test_row_parallel(tp: int) -> None:
    run_cases(row, [(*case, None) for case in product((24, 23), (False, True))], tp=tp)


def test_row_parallel_with_given_parts() -> None:
    run_layout(row, 13, True, [range(1), range(1, 11), range(11, 13)], tp=3)


def merged(context: ParallelContext, bias: bool) -> None:
    sizes = {"wa": 9, "wb": 14}
    parts = {
        name: partition(size, context.tp.size)[context.tp.rank] for name, size in sizes.items()
    }
    tensors = full_tensors(*[(name, size, IN_FEATURES) for name, size in sizes.items()])
    layer = MergedColumnParallelLinear(
        IN_FEATURES,
        [(name, size, parts[name]) for name, size in sizes.items()],
        bias=bias,
        tp=context.tp,
        dtype=torch.float32,
    )
    materialize(layer, CPU)
    fill(layer, tensors)
    x = rows(IN_FEATURES)
    expected = [take(plain(x, tensors, name, bias=bias), parts[name]) for name in sizes]
    torch.testing.assert_close(layer(x), torch.cat(expected, dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tp", TP_SIZES)
def test_merged_column_parallel(tp: int) -> None:
    run_cases(merged, [(False,), (True,)], tp=tp)


def qkv(context: ParallelContext, own_heads: list[tuple[range, range]], bias: bool) -> None:
    """`own_heads`: the query heads and KV heads of every rank, of 6 and 2 with head_dim 4."""
    tensors = full_tensors(("wq", 24, IN_FEATURES), ("wk", 8, IN_FEATURES), ("wv", 8, IN_FEATURES))
    layer = QKVParallelLinear(
        IN_FEATURES,
        n_heads=6,
        n_kv_heads=2,
        head_dim=4,
        bias=bias,
        tp=context.tp,
        dtype=torch.float32,
    )
    materialize(layer, CPU)
    fill(layer, tensors)
    heads, kv_heads = own_heads[context.tp.rank]
    assert (layer.n_local_heads, layer.n_local_kv_heads) == (len(heads), len(kv_heads))
    x = rows(IN_FEATURES)
    expected = []
    for name, own in (("wq", heads), ("wk", kv_heads), ("wv", kv_heads)):
        by_head = plain(x, tensors, name, bias=bias).view(N_ROWS, -1, 4)
        expected.append(by_head[:, own.start : own.stop].flatten(1))
    torch.testing.assert_close(layer(x), torch.cat(expected, dim=-1), rtol=1e-5, atol=1e-5)


ONE, OTHER = range(1), range(1, 2)


@pytest.mark.parametrize(
    "own_heads",
    [
        [(range(6), range(2))],
        [(range(3), ONE), (range(3, 6), OTHER)],
        [(range(2), ONE), (range(2, 3), ONE), (range(3, 6), OTHER)],
        [(range(2), ONE), (range(2, 3), ONE), (range(3, 5), OTHER), (range(5, 6), OTHER)],
    ],
)
def test_qkv_parallel(own_heads: list[tuple[range, range]]) -> None:
    run_cases(qkv, [(own_heads, False), (own_heads, True)], tp=len(own_heads))


def make_column(tp: Communicator) -> ColumnParallelLinear:
    return ColumnParallelLinear(8, 3, bias=False, tp=tp, name="wa", dtype=torch.float32)


def make_row(tp: Communicator) -> RowParallelLinear:
    return RowParallelLinear(3, 8, bias=False, tp=tp, name="wa", dtype=torch.float32)


def test_more_ranks_than_features_are_refused() -> None:
    with pytest.raises(UsageError, match="tp_size 4 exceeds out_features 3; use at most 3"):
        make_column(Place(0, 4))
    with pytest.raises(UsageError, match="tp_size 4 exceeds in_features 3; use at most 3"):
        make_row(Place(0, 4))
