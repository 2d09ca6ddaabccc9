"""What a rank calls, as one word that the others can compare with theirs, and in words."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""In the order of `enum dtype` in src/shm.c."""
CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_OTHER = 63
_OPS = ("all_reduce", "gather", "broadcast", "barrier", "message")
_NUMBERS = {op: number for number, op in enumerate(_OPS, 1)}
_NOBODY = 1023
_ROOT_SHIFT, _DTYPE_SHIFT, _BYTES_SHIFT = 4, 14, 20


def signature_of(op: str, x: Tensor | None = None, *, root: int | None = None) -> int:
    """4 bits for the call, 10 for its source or destination, 6 for the dtype, 44 for the bytes."""
    word = _NUMBERS[op] | (_NOBODY if root is None else root) << _ROOT_SHIFT
    if x is None:
        return word
    return word | CODES.get(x.dtype, _OTHER) << _DTYPE_SHIFT | x.nbytes << _BYTES_SHIFT


def describe_signature(word: int) -> str:
    """'all_reduce of 64 bytes of torch.float32', or 'broadcast from or to rank 1 of …'."""
    op, root = word & 15, word >> _ROOT_SHIFT & _NOBODY
    name = _OPS[op - 1] if 0 < op <= len(_OPS) else "something unknown"
    if name == "barrier":
        return name
    code = word >> _DTYPE_SHIFT & _OTHER
    dtype = str(DTYPES[code]) if code < len(DTYPES) else "another dtype"
    where = "" if root == _NOBODY else f" with root {root}"
    return f"{name}{where} of {word >> _BYTES_SHIFT} bytes of {dtype}"
