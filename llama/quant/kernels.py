"""The native kernels for quantised weights, types bound.

Pointers are all that they get: callers check formats, devices and strides.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from llama.native import library
from llama.quant.groups import SCALE_DTYPE

_I, _P = ctypes.c_int64, ctypes.c_void_p


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """`llama_quantized_linear` and `llama_dequantize`; None where there is no library."""
    found = library("math")
    if found is not None:
        found.llama_quantized_linear.argtypes = (*[_P] * 5, *[_I] * 6)
        found.llama_quantized_linear.restype = None
        found.llama_dequantize.argtypes = (*[_P] * 3, *[_I] * 4)
        found.llama_dequantize.restype = None
    return found


def kernels_for(values: Tensor, scales: Tensor, *, group_size: int) -> ctypes.CDLL | None:
    """`kernels()` where they can take this weight and would read no byte beside it."""
    bits = 8 if values.dtype == torch.int8 else 4
    columns = values.shape[1] * 8 // bits
    fits = (
        values.is_cpu
        and scales.is_cpu
        and values.dtype in (torch.int8, torch.uint8)
        and scales.dtype == SCALE_DTYPE
        and values.is_contiguous()
        and scales.is_contiguous()
        and scales.shape == (values.shape[0], columns // group_size)
    )
    return kernels() if fits else None
