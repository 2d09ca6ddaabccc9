"""What flash_attn's kernel is given: with one that follows its documentation, attention is right.

Its own kernel runs on a GPU only.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama.errors import HardwareError, UnknownNameError
from llama.ops.attention import choose as choosing
from llama.ops.attention import flash
from llama.ops.attention.choose import choose_attention
from llama.ops.attention.flash import FlashAttention, group_in_order
from tests.helpers.attention_cases import HEADS, NO_RING, SPANS, Case, make_case

CPU = torch.device("cpu")


def documented_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: Tensor | None,
) -> Tensor:
    """flash_attn_varlen_func, one sequence after the other.

    Query i sees keys i + n_keys - n_queries - left to i + n_keys - n_queries, by its docstring.
    """
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and causal
    assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
    assert k.dim() == v.dim() == (3 if block_table is None else 4)
    left = max_seqlen_k if window_size[0] < 0 else window_size[0]
    outputs = []
    for index, (start, stop) in enumerate(pairwise(cu_seqlens_q)):
        own = slice(int(cu_seqlens_k[index]), int(cu_seqlens_k[index + 1]))
        keys, values = (
            side[own]
            if block_table is None
            else side[block_table[index].long()].flatten(0, 1)[: own.stop - own.start]
            for side in (k, v)
        )
        group = q.shape[1] // k.shape[-2]
        keys, values = (side.repeat_interleave(group, dim=1) for side in (keys, values))
        ends = torch.arange(int(stop - start)).unsqueeze(1) + len(keys) - int(stop - start)
        places = torch.arange(len(keys))
        scores = torch.einsum("nhd,chd->hnc", q[start:stop], keys) * softmax_scale
        scores.masked_fill_((places > ends) | (places < ends - left), -torch.inf)
        outputs.append(torch.einsum("hnc,chd->nhd", scores.softmax(-1), values))
    return torch.cat(outputs)


def run(case: Case) -> Tensor:
    return case.run_with(
        FlashAttention(
            case.batch, dtype=torch.float32, window=case.window, kernel=documented_kernel
        )
    )


@settings(max_examples=60, deadline=None)
@given(
    spans=SPANS,
    heads=HEADS,
    block_size=st.sampled_from([1, 4, 16]),
    is_paged=st.booleans(),
    window=st.sampled_from([None, 1, 3, 8, 16, 21]),
    spare_blocks=st.sampled_from([0, 0, 1, 5]),
    seed=st.integers(0, 1000),
    max_tokens=st.sampled_from([30, 65536]),
)
def test_the_kernel_is_given_what_attention_needs(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    block_size: int,
    is_paged: bool,
    window: int | None,
    spare_blocks: int,
    seed: int,
    max_tokens: int,
) -> None:
    """Gathered, and paged, for which small pages stand for those of 256 that the real one takes."""
    case = make_case(
        spans,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        block_size=block_size,
        window=window,
        ring_blocks=NO_RING if window is None else -(-window // block_size) + spare_blocks,
        seed=seed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "PAGE_SIZE", block_size if is_paged else 256)
        patch.setattr(flash, "MAX_GATHERED_TOKENS", max_tokens)
        torch.testing.assert_close(run(case), case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("block_size", "is_read_in_place"), [(256, True), (512, True), (128, False)]
)
def test_large_blocks_are_read_in_place(block_size: int, is_read_in_place: bool) -> None:
    case = make_case([(300, 1), (20, 3)], block_size=block_size, window=290)
    seen: list[bool] = []

    def kernel(*args: Tensor | int, **options: object) -> Tensor:
        seen.append(options["block_table"] is not None)
        return documented_kernel(*args, **options)  # type: ignore[arg-type]

    found = case.run_with(
        FlashAttention(case.batch, dtype=torch.float32, window=290, kernel=kernel)
    )
    torch.testing.assert_close(found, case.expected, rtol=1e-5, atol=1e-5)
    assert seen == [is_read_in_place]


def test_groups_keep_order_and_bound_a_gather() -> None:
    lengths = [4, 5, 30, 1, 9, 1]
    groups = group_in_order([0, 1, 2, 3, 4], lengths, max_tokens=10)
    assert groups == [[0, 1], [2], [3, 4]]
    assert group_in_order([], lengths, max_tokens=10) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("block_size", [4, 256])
def test_the_real_kernel(block_size: int, window: int | None, dtype: torch.dtype) -> None:
    pytest.importorskip("flash_attn")
    spans = [(9, 1), (0, 12), (7, 6), (300, 1), (0, 1)]
    ring_blocks = -(-8 // block_size) if window else NO_RING
    case = make_case(spans, block_size=block_size, window=window, ring_blocks=ring_blocks)
    found = case.on_gpu().run("flash", dtype=dtype).cpu().float()
    torch.testing.assert_close(found, case.expected, rtol=0, atol=0.04)


# Choosing ---------------------------------------------------------------------------------------


def choose(
    name: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 128,
) -> tuple[str, str]:
    return choose_attention(name, device=device, dtype=dtype, head_dim=head_dim)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose kernel comes first."""
    monkeypatch.setattr(choosing, "has_kernel", lambda device: False)


def test_the_paged_kernel_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what a decoding step can be captured with."""
    monkeypatch.setattr(choosing, "has_kernel", lambda device: device.type == "cuda")
    assert choose("auto", torch.device("cuda"))[0] == "paged"
    assert choose("auto")[0] != "paged"
    assert choose("paged") == ("paged", "as asked")


def test_flash_needs_a_gpu() -> None:
    assert choose("naive") == ("naive", "as asked")
    with pytest.raises(HardwareError, match=r"flash cannot run: .*not cpu; use auto or sdpa"):
        choose("flash")


def test_an_unknown_name_lists_auto_too() -> None:
    known = "'flush'; known: auto, flash, naive, native, paged, sdpa"
    with pytest.raises(UnknownNameError, match=known):
        choose("flush")


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "reason"),
    [
        ((7, 5), torch.float16, 128, "compute capability 8.0, not 7.5"),
        ((8, 0), torch.float32, 128, "not torch.float32"),
        ((9, 0), torch.float16, 512, "at most 256, not 512"),
        ((9, 0), torch.float16, 36, "a multiple of 8, at most 256, not 36"),
        ((8, 6), torch.bfloat16, 256, "flash_attn is not installed"),
    ],
)
def test_what_flash_needs(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a GPU of that capability would have it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if not installed
    gpu = torch.device("cuda")
    name, found = choose("auto", gpu, dtype, head_dim)
    assert name == "sdpa" and reason in found
    with pytest.raises(HardwareError, match=reason):
        choose("flash", gpu, dtype, head_dim)


def kernel_of_an_early_version(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize(
    "package", [SimpleNamespace(flash_attn_varlen_func=kernel_of_an_early_version), ModuleType("")]
)
def test_a_package_without_the_kernel_is_not_used(
    package: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    name, reason = choose("auto", torch.device("cuda"))
    assert name == "sdpa" and "no flash_attn_varlen_func with a block_table" in reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import flash_attn_2_cuda", "No module named 'flash_attn_2_cuda'"),
        ("raise ImportError('undefined symbol: at_cuda')", "undefined symbol: at_cuda"),
    ],
)
def test_a_broken_package_says_what_is_broken(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    with pytest.raises(HardwareError, match=f"cannot be imported: {reason}"):
        flash.load_kernel()


@pytest.mark.usefixtures("without_triton")
def test_where_flash_can_run_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(flash_attn_varlen_func=documented_kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert choose("auto", torch.device("cuda"))[0] == "flash"
    assert choose("flash", torch.device("cuda")) == ("flash", "as asked")
