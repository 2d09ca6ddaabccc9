"""Backends against attention written out densely, over ragged batches and scattered blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llama.errors import UnknownNameError
from llama.ops.attention import ATTENTION, sdpa
from llama.ops.attention.sdpa import group_by_length
from llama.registry import resolve
from tests.helpers.attention_cases import (
    HEADS,
    NO_RING,
    SCALE,
    SPANS,
    Case,
    make_case,
)

BACKENDS = ["naive", "sdpa"]
MIXED = [(9, 1), (0, 12), (7, 6), (30, 1), (0, 1)]


@settings(max_examples=60, deadline=None)
@given(
    spans=SPANS,
    heads=HEADS,
    block_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 3, 8, 16, 21]),
    spare_blocks=st.sampled_from([0, 0, 1, 5, 2**24]),
    seed=st.integers(0, 1000),
    in_order=st.booleans(),
)
def test_backends_agree_with_dense_attention(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    block_size: int,
    window: int | None,
    spare_blocks: int,
    seed: int,
    in_order: bool,
) -> None:
    """A ring holds the window, exactly where it can, or that of a layer with a wider one."""
    case = make_case(
        spans,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        block_size=block_size,
        window=window,
        ring_blocks=NO_RING if window is None else -(-window // block_size) + spare_blocks,
        seed=seed,
        in_order=in_order,
    )
    for backend in BACKENDS:
        torch.testing.assert_close(case.run(backend), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 8])
def test_heads_of_a_group_may_have_keys_of_their_own(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, for what takes a mask."""
    monkeypatch.setattr(sdpa, "repeats_kv", lambda device_type: True)
    case = make_case(MIXED, window=window, ring_blocks=2 if window else NO_RING)
    torch.testing.assert_close(case.run("sdpa"), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 8])
def test_half_precision_stays_near(window: int | None, backend: str, dtype: torch.dtype) -> None:
    case = make_case(MIXED, window=window, ring_blocks=2 if window else NO_RING)
    found = case.run(backend, dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), case.expected, rtol=0, atol=0.04)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 8])
def test_a_gpu_gives_the_same(window: int | None, backend: str, dtype: torch.dtype) -> None:
    case = make_case(MIXED, window=window, ring_blocks=2 if window else NO_RING)
    found = case.on_gpu().run(backend, dtype=dtype).cpu().float()
    atol = 1e-4 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(found, case.expected, rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_be_slices_of_one_wide_tensor(backend: str) -> None:
    case = make_case([(9, 1), (0, 12), (7, 6), (30, 1)], window=8, ring_blocks=2)
    wide = torch.cat([case.q, case.k, case.v], dim=1)
    q, k, v = wide.split([4, 2, 2], dim=1)
    found = replace(case, q=q, k=k, v=v).run(backend)
    torch.testing.assert_close(found, case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ring_keeps_the_last_tokens(backend: str) -> None:
    """Of 12 new ones the 8 that fit, in the order of their positions."""
    case = make_case([(5, 12), (6, 1)], window=7, ring_blocks=2, in_order=True)
    attend = case.prepare(backend)
    attend(case.q, case.k, case.v, case.k_cache, case.v_cache, scale=SCALE)
    for fresh, cache in ((case.k, case.k_cache), (case.v, case.v_cache)):
        assert cache[4:12].equal(fresh[[11, *range(4, 11)]])  # position 16, then 9 to 15
        assert cache[18].equal(fresh[12])


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="naive, native, paged, sdpa"):
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


COPIES = {"index_select", "index", "cat", "clone", "copy_", "_to_copy"}


def count_ops(case: Case) -> CountOps:
    attend = case.prepare("sdpa")
    with CountOps() as ops:
        found = attend(case.q, case.k, case.v, case.k_cache, case.v_cache, scale=SCALE)
    torch.testing.assert_close(found, case.expected, rtol=1e-5, atol=1e-5)
    return ops


def test_a_lone_sequence_in_order_is_read_in_place() -> None:
    ops = count_ops(make_case([(30, 1)], in_order=True))
    assert ops.attention_calls == 1
    assert not COPIES & ops.counts.keys()


def test_a_prompt_that_begins_here_is_not_read_back() -> None:
    assert not COPIES & count_ops(make_case([(0, 30)])).counts.keys()


@pytest.mark.parametrize("window", [32, 30])
def test_a_full_ring_in_order_is_read_in_place(window: int) -> None:
    """Whose window starts in the middle of it; one that is narrower than the ring takes a mask."""
    case = make_case([(74, 1)], window=window, ring_blocks=8, in_order=True)
    assert not COPIES & count_ops(case).counts.keys()


def test_a_window_much_narrower_than_its_ring_is_gathered() -> None:
    ops = count_ops(make_case([(64, 1)], window=3, ring_blocks=8, in_order=True))
    assert ops.counts["index_select"] == 2  # keys and values


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
