"""The native library "math" as this package's ops call it: types bound, dtypes by number.

Pointers are all that it gets, so callers check devices, dtypes and strides before. It knows nothing
of gradients: what wants one takes the path of torch.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from llama.native import library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_ARGUMENTS = {
    "llama_attend_decode": (_I, *[_P] * 7, _I, _P, *[_I] * 8, _F),
    "llama_best_token": (_P, _I, _I, _I, _P, _P),
    "llama_draw": (_P, _I, _I, _I, *[_P] * 5),
    "llama_linear": (*[_P] * 4, *[_I] * 6),
    "llama_rms_norm": (_I, _P, _P, _P, _I, _I, _F),
    "llama_rope": (_I, _P, _I, _I, _I, _I, _P, _P, _I),
    "llama_swiglu": (_I, _P, _P, _I, _I),
}
_RESULTS = {"llama_linear": _I}


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The functions named above; None where there is no library."""
    found = library("math")
    if found is not None:
        for name, arguments in _ARGUMENTS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return found


def kernels_for(x: Tensor) -> ctypes.CDLL | None:
    """`kernels()` where they can take `x` as far as device, dtype and gradients go."""
    if x.is_cpu and x.dtype in DTYPES and not x.requires_grad:
        return kernels()
    return None
