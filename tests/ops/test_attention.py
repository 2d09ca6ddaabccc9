"""Both backends against attention written out densely, over ragged batches and scattered blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama.errors import UnknownNameError
from llama.ops.attention import ATTENTION
from llama.ops.attention.sdpa import SdpaAttention, group_by_length
from llama.ops.batch import Batch
from llama.registry import resolve
from tests.helpers.batches import NewTokens, make_batch, shuffled_tables

HEAD_DIM = 8
SCALE = HEAD_DIM**-0.5


@dataclass(frozen=True)
class Case:
    """One step: its batch, queries, cache, and what attention must give, in float32."""

    batch: Batch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    expected: Tensor

    def run(self, backend: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
        attend = resolve(ATTENTION, backend, kind="attention backend")(self.batch, dtype=dtype)
        out: Tensor = attend(
            self.q.to(dtype), self.k_cache.to(dtype), self.v_cache.to(dtype), scale=SCALE
        )
        return out


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Head by head and query by query: q (n, heads, d) are the last n of k, v (c, kv_heads, d)."""
    n_new, n_heads, _ = q.shape
    context_len, n_kv_heads, _ = k.shape
    out = torch.empty_like(q)
    for head in range(n_heads):
        kv_head = head * n_kv_heads // n_heads
        for row in range(n_new):
            visible = context_len - n_new + row + 1
            scores = k[:visible, kv_head] @ q[row, head] / math.sqrt(HEAD_DIM)
            out[row, head] = scores.softmax(0) @ v[:visible, kv_head]
    return out


def make_case(
    spans: list[tuple[int, int]],
    *,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    block_size: int = 4,
    seed: int = 0,
    in_order: bool = False,
) -> Case:
    """Sequences of (tokens in the cache, new tokens). What belongs to nobody is NaN."""
    torch.manual_seed(seed)
    lengths = [start + n_new for start, n_new in spans]
    num_blocks = sum(-(-length // block_size) for length in lengths) + 3
    tables = shuffled_tables(lengths, num_blocks=num_blocks, block_size=block_size, seed=seed)
    if in_order:
        blocks = iter(range(1, num_blocks))
        tables = [tuple(next(blocks) for _ in table) for table in tables]
    sequences = [
        NewTokens([0] * n_new, start, table)
        for (start, n_new), table in zip(spans, tables, strict=True)
    ]
    batch = make_batch(sequences, block_size=block_size)
    q = torch.randn(batch.n_tokens, n_heads, HEAD_DIM)
    k_cache = torch.full((num_blocks * block_size, n_kv_heads, HEAD_DIM), torch.nan)
    v_cache = k_cache.clone()
    expected = []
    for index, (length, table) in enumerate(zip(lengths, tables, strict=True)):
        k, v = torch.randn(2, length, n_kv_heads, HEAD_DIM)
        slots = [table[p // block_size] * block_size + p % block_size for p in range(length)]
        k_cache[slots], v_cache[slots] = k, v
        rows = slice(*batch.cu_seqlens[index : index + 2])
        expected.append(dense(q[rows], k, v))
    return Case(batch, q, k_cache, v_cache, torch.cat(expected))


SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 5, 17])), min_size=1, max_size=7
)


@settings(max_examples=60, deadline=None)
@given(
    spans=SPANS,
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)]),
    block_size=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 1000),
    in_order=st.booleans(),
)
def test_backends_agree_with_dense_attention(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    block_size: int,
    seed: int,
    in_order: bool,
) -> None:
    case = make_case(
        spans,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        block_size=block_size,
        seed=seed,
        in_order=in_order,
    )
    for backend in ATTENTION:
        torch.testing.assert_close(case.run(backend), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ATTENTION)
def test_half_precision_stays_near(backend: str, dtype: torch.dtype) -> None:
    case = make_case([(9, 1), (0, 12), (7, 6), (30, 1), (0, 1)])
    found = case.run(backend, dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), case.expected, rtol=0, atol=0.04)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ATTENTION)
def test_a_gpu_gives_the_same(backend: str, dtype: torch.dtype) -> None:
    case = make_case([(9, 1), (0, 12), (7, 6), (30, 1), (0, 1)])
    fields = {
        name: value.cuda() if isinstance(value, Tensor) else value
        for name, value in vars(case.batch).items()
    }
    on_gpu = Case(
        Batch(**fields), case.q.cuda(), case.k_cache.cuda(), case.v_cache.cuda(), case.expected
    )
    found = on_gpu.run(backend, dtype=dtype).cpu().float()
    atol = 1e-4 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(found, case.expected, rtol=0, atol=atol)


def test_queries_may_be_a_slice_of_a_wider_tensor() -> None:
    case = make_case([(9, 1), (0, 12), (7, 6), (30, 1)])
    wide = torch.randn(case.q.shape[0], 7, HEAD_DIM)
    wide[:, 2:6] = case.q
    for backend in ATTENTION:
        attend = resolve(ATTENTION, backend, kind="attention backend")(
            case.batch, dtype=torch.float32
        )
        found = attend(wide[:, 2:6], case.k_cache, case.v_cache, scale=SCALE)
        torch.testing.assert_close(found, case.expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="naive, sdpa"):
        resolve(ATTENTION, "flush", kind="attention backend")


class CountOps(TorchDispatchMode):
    """How often each aten operator runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

    @property
    def attention_calls(self) -> int:
        return sum(n for name, n in self.counts.items() if "scaled_dot_product" in name)


def count_ops(case: Case) -> CountOps:
    attend = SdpaAttention(case.batch, dtype=torch.float32)
    with CountOps() as ops:
        attend(case.q, case.k_cache, case.v_cache, scale=SCALE)
    return ops


def test_a_lone_sequence_in_order_is_read_in_place() -> None:
    ops = count_ops(make_case([(30, 1)], in_order=True))
    assert ops.attention_calls == 1
    assert not {"index_select", "index", "clone", "copy_", "_to_copy"} & ops.counts.keys()


def test_short_decodes_share_one_call() -> None:
    spans = [(20 + index, 1) for index in range(12)]
    ops = count_ops(make_case(spans))
    assert ops.attention_calls == 1
    assert ops.counts["index_select"] == 2  # keys and values


def test_a_prompt_among_decodes_costs_one_more_call() -> None:
    assert count_ops(make_case([(20, 1), (0, 9), (22, 1), (3, 5)])).attention_calls == 3


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    max_tokens=st.sampled_from([512, 65536]),
)
def test_groups_tile_and_waste_little(lengths: list[int], max_tokens: int) -> None:
    groups = group_by_length(range(len(lengths)), lengths, max_tokens=max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert group == sorted(group)
        own = [lengths[index] for index in group]
        padded = len(own) * max(own)
        assert len(own) == 1 or padded <= max_tokens
        assert padded <= 512 or 2 * sum(own) >= padded


def test_one_long_sequence_does_not_pad_the_others() -> None:
    assert group_by_length([0, 1, 2, 4], [50, 3000, 40, 0, 60], max_tokens=65536) == [
        [0, 2, 4],
        [1],
    ]
