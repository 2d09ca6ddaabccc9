"""The product of activations and a dense weight: own kernels on the CPU, torch's elsewhere.

It knows no layer and no rank. The weight stays as it was loaded: nothing is packed for later, so it
may be tied and costs its memory once. docs/performance.md, "CPU products", has what was measured.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.ops.kernels import DTYPES, kernels_for

_HALVES = (torch.bfloat16, torch.float16)
_FEW_ROWS = 8
_BLOCK_ELEMENTS = 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (M, K) transposed, plus bias (M,) -> (..., M) in x's dtype.

    On the CPU sums are float32, and x may be float32 beside a 16-bit weight.
    """
    if not x.is_cpu:
        return F.linear(x, weight, bias)
    is_many = x.numel() > _FEW_ROWS * x.shape[-1]
    if is_many and x.dtype == weight.dtype == torch.bfloat16 and _has_bfloat16_products():
        return F.linear(x, weight, bias)
    out = _native(x, weight, bias)
    if out is not None:
        return out
    if weight.dtype in _HALVES and (is_many or x.dtype != weight.dtype):
        return _widened_by_blocks(x, weight, bias)
    return F.linear(x, weight, bias)


def _native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The product by the kernels of linear.cpp; None where they cannot take these tensors."""
    native = kernels_for(x)
    if native is None or not _is_plain(weight, weight.dtype) or weight.dtype not in DTYPES:
        return None
    if bias is not None and not _is_plain(bias, weight.dtype):
        return None
    rows, columns = weight.shape
    if x.shape[-1] != columns or (bias is not None and bias.shape != (rows,)):
        return None  # torch has the words for it
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], rows))
    failed = native.llama_linear(
        out.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.numel() // rows if rows else 0,
        rows,
        columns,
        DTYPES[x.dtype],
        DTYPES[weight.dtype],
        torch.get_num_threads(),
    )
    return None if failed else out


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.is_contiguous()
        and not tensor.requires_grad
    )


def _widened_by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32, a block of the 16-bit weight at a time.

    Processors without 16-bit products take many times as long for them as for this.
    """
    wide = x.float()
    out = wide.new_empty((*x.shape[:-1], weight.shape[0]))
    block_rows = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], block_rows):
        some = slice(start, start + block_rows)
        out[..., some] = F.linear(wide, weight[some].float())
    if bias is not None:
        out += bias
    return out.to(x.dtype)


@functools.cache
def _has_bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16 itself, as fast as torch's kernels then are."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
