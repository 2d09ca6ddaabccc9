"""The native backend against dense and naive attention: rings, windows, groups, dtypes, threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.errors import HardwareError
from llama.ops.attention import choose
from llama.ops.attention.choose import choose_attention
from llama.ops.kernels import kernels
from tests.helpers.attention_cases import HEADS, NO_RING, SCALE, SPANS, Case, make_case

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C++ compiler here")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
CPU = torch.device("cpu")


def is_close(case: Case, dtype: torch.dtype) -> None:
    expected = case.expected if dtype == torch.float32 else case.run("naive", dtype=dtype).float()
    found = case.run("native", dtype=dtype).float()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    spans=SPANS,
    only_decodes=st.booleans(),
    heads=HEADS,
    block_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 3, 8, 16, 21]),
    spare_blocks=st.sampled_from([0, 0, 1, 5, 2**24]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
def test_it_agrees_with_dense_attention(
    spans: list[tuple[int, int]],
    only_decodes: bool,
    heads: tuple[int, int],
    block_size: int,
    window: int | None,
    spare_blocks: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    case = make_case(
        [(start, 1) for start, _ in spans] if only_decodes else spans,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        block_size=block_size,
        window=window,
        ring_blocks=NO_RING if window is None else -(-window // block_size) + spare_blocks,
        seed=seed,
    )
    is_close(case, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("head_dim", [8, 24, 64, 128])
def test_contexts_longer_than_a_chunk_on_several_threads(
    head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.attention_cases.HEAD_DIM", head_dim)
    case = make_case([(n, 1) for n in (0, 63, 64, 65, 127, 200)], n_heads=6, n_kv_heads=2)
    # the case scales for another width
    case = replace(case, q=case.q * head_dim**-0.5 / SCALE)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        is_close(case, dtype)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("spans", [[(5, 1), (0, 1), (9, 1)], [(5, 1), (0, 7), (9, 1)]])
def test_new_keys_and_values_are_kept_where_the_batch_says(spans: list[tuple[int, int]]) -> None:
    case = make_case(spans)
    k_cache, v_cache = case.k_cache.clone(), case.v_cache.clone()
    case.prepare("native")(case.q, case.k, case.v, k_cache, v_cache, scale=SCALE)
    for cache, before, fresh in ((k_cache, case.k_cache, case.k), (v_cache, case.v_cache, case.v)):
        expected = before.index_copy(0, case.batch.slot_mapping, fresh)
        assert torch.equal(cache.nan_to_num(7.0), expected.nan_to_num(7.0))


@needs_kernels
def test_tensors_that_are_parts_of_one_are_read_where_they_lie() -> None:
    case = make_case([(5, 1), (20, 1)])
    qkv = torch.cat([case.q, case.k, case.v], dim=1)
    q, k, v = qkv.split([case.q.shape[1], case.k.shape[1], case.v.shape[1]], dim=1)
    found = replace(case, q=q, k=k, v=v)
    out = found.prepare("native")(q, k, v, case.k_cache, case.v_cache, scale=SCALE)
    torch.testing.assert_close(out, case.expected, rtol=2e-5, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_own_sequence_alone(bad: float) -> None:
    case = make_case([(70, 1), (20, 1)], n_heads=2, n_kv_heads=2)
    case.v[0, 1, 3] = bad
    out = case.run("native")
    assert not out[0, 1, 3].isfinite()
    torch.testing.assert_close(out[1], case.expected[1], rtol=2e-5, atol=2e-5)
    case.k[0, 0, 3] = torch.nan
    assert case.run("native")[0, 0].isnan().all()


@needs_kernels
def test_auto_is_native_on_a_cpu_and_sdpa_where_it_cannot_be() -> None:
    wide = {"device": CPU, "dtype": torch.float32, "head_dim": 64}
    assert choose_attention("auto", **wide) == ("native", "native has kernels for this device")
    assert choose_attention("native", **wide) == ("native", "as asked")
    name, why = choose_attention("auto", device=CPU, dtype=torch.float32, head_dim=12)
    assert name == "sdpa" and "12" in why
    with pytest.raises(HardwareError, match="float64 and 64; use auto or sdpa"):
        choose_attention("native", device=CPU, dtype=torch.float64, head_dim=64)
    with pytest.raises(HardwareError, match="need a CPU"):
        choose_attention("native", device=torch.device("cuda"), dtype=torch.float32, head_dim=64)


def test_without_the_library_auto_is_sdpa_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "kernels", lambda: None)
    monkeypatch.setattr(choose, "why_not", lambda _: "LLAMA_NATIVE=0")
    name, why = choose_attention("auto", device=CPU, dtype=torch.float32, head_dim=64)
    assert (name, why) == ("sdpa", "no native kernels: LLAMA_NATIVE=0")
    with pytest.raises(HardwareError, match="LLAMA_NATIVE=0; use auto or sdpa"):
        choose_attention("native", device=CPU, dtype=torch.float32, head_dim=64)
