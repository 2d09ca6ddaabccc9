"""Large pages for large tensors: filling them takes far fewer page faults, using them fewer misses.

Linux gives them only to who asks, in its usual setting. Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_HUGE_PAGE_BYTES = 2**21


def ask_for_huge_pages(tensor: Tensor) -> None:
    """Ask for the whole huge pages within the memory of `tensor`, before it is first written."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    begin = -(-tensor.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    end = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    if begin < end:
        # A refusal is no loss, so the result does not matter.
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
