"""Decoding over the paged cache with tables on the device: by torch, and by the GPU's kernel, which
Triton's interpreter runs here, in a process that is told so before it imports Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.ops.attention.paged import device_tables
from tests.helpers.attention_cases import HEADS, NO_RING, SCALE, Case, make_case

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llama.ops.attention import paged_kernel

TYPES = {{
    "found_ptr": "*fp32", "scores_ptr": "*fp32", "tables_ptr": "*i64", "lengths_ptr": "*i64",
    "scale": "fp32",
}}
SIZES = {{
    "BLOCK_SIZE": 16, "GROUP": 8, "ROWS": 16, "HEAD_DIM": 128, "COLUMNS": 128, "TOKENS": 64,
    "SPLITS": 16,
}}
for kernel in (paged_kernel._attend_run, paged_kernel._join_runs):
    sizes = {{name: SIZES[name] for name in kernel.arg_names if name in SIZES}}
    types = {{
        name: TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }}
    types |= dict.fromkeys(sizes, "constexpr")
    made = triton.compile(
        ASTSource(kernel, types, sizes), target=GPUTarget("cuda", {capability}, 32)
    )
    print("cubin" if made.asm["cubin"] else "nothing")
    if "mma" in made.asm["ptx"]:
        print("mma")
"""
STARTS = st.lists(st.integers(0, 70), min_size=1, max_size=5)


interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process of its own"
)


def decode_case(
    starts: list[int], heads: tuple[int, int], block_size: int, window: int | None, seed: int
) -> Case:
    return make_case(
        [(start, 1) for start in starts],
        n_heads=heads[0],
        n_kv_heads=heads[1],
        block_size=block_size,
        window=window,
        ring_blocks=NO_RING if window is None else -(-window // block_size) + seed % 2,
        seed=seed,
    )


def run_kernel(case: Case, *, n_splits: int, dtype: torch.dtype) -> torch.Tensor:
    from llama.ops.attention.paged_kernel import paged_decode

    k_cache, v_cache = (side.to(dtype, copy=True) for side in (case.k_cache, case.v_cache))
    k_cache[case.batch.slot_mapping], v_cache[case.batch.slot_mapping] = (
        side.to(dtype) for side in (case.k, case.v)
    )
    tables = device_tables(case.batch)
    return paged_decode(
        case.q.to(dtype),
        k_cache,
        v_cache,
        block_tables=tables.block_tables,
        context_lens=tables.context_lens,
        block_size=case.batch.block_size,
        window=case.window,
        scale=SCALE,
        n_splits=n_splits,
    )


@settings(max_examples=40, deadline=None)
@given(
    starts=STARTS,
    heads=HEADS,
    block_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 3, 8, 21]),
    seed=st.integers(0, 1000),
)
def test_torch_agrees_with_dense_attention(
    starts: list[int], heads: tuple[int, int], block_size: int, window: int | None, seed: int
) -> None:
    case = decode_case(starts, heads, block_size, window, seed)
    torch.testing.assert_close(case.run("paged"), case.expected, atol=1e-5, rtol=1e-5)


@interpreted
@settings(max_examples=15, deadline=None)
@given(
    starts=STARTS,
    heads=HEADS,
    block_size=st.sampled_from([4, 16]),
    window=st.sampled_from([None, 1, 8, 21]),
    n_splits=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 1000),
)
def test_the_kernel_agrees_with_dense_attention(
    starts: list[int],
    heads: tuple[int, int],
    block_size: int,
    window: int | None,
    n_splits: int,
    seed: int,
) -> None:
    """More runs than tokens leave some empty."""
    case = decode_case(starts, heads, block_size, window, seed)
    found = run_kernel(case, n_splits=n_splits, dtype=torch.float32)
    torch.testing.assert_close(found, case.expected, atol=1e-5, rtol=1e-5)


@interpreted
def test_the_kernel_in_16_bits() -> None:
    """Not in bfloat16, of which the interpreter multiplies the bit patterns."""
    case = decode_case([130, 5, 64], (6, 2), 16, None, 1)
    found = run_kernel(case, n_splits=2, dtype=torch.float16)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), case.expected, atol=2e-2, rtol=2e-2)


@pytest.mark.nightly
@pytest.mark.skipif(interpreted.args[0] is False, reason="this is that process")
def test_the_kernel_in_an_interpreter() -> None:
    pytest.importorskip("triton")
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "kernel_agrees or in_16_bits",
        __file__,
    ]
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, *words], env=environ, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_gpus_that_are_not_here(capability: int) -> None:
    """To machine code, by the compiler that Triton brings."""
    pytest.importorskip("triton")
    script = COMPILE.format(capability=capability)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["cubin", "mma", "cubin"]


def test_steps_with_prompts_are_another_backends() -> None:
    case = make_case([(9, 1), (0, 12), (7, 6)])
    torch.testing.assert_close(case.run("paged"), case.expected, atol=1e-5, rtol=1e-5)


def test_tables_on_the_device_replace_the_hosts() -> None:
    """As in a captured graph, whose host integers are of the step that was captured."""
    case = decode_case([30, 6], (4, 2), 4, None, 3)
    tables = device_tables(case.batch)
    stale = replace(case.batch, block_tables=((0,), (0,)), context_lens=(1, 1), tables=tables)
    found = replace(case, batch=stale).run("paged")
    torch.testing.assert_close(found, case.expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 21])
def test_on_a_gpu(window: int | None) -> None:
    pytest.importorskip("triton")
    case = decode_case([130, 5, 64], (8, 2), 16, window, 1)
    found = case.on_gpu().run("paged", dtype=torch.bfloat16)
    torch.testing.assert_close(found.float().cpu(), case.expected, atol=2e-2, rtol=2e-2)
