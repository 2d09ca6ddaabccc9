"""Memory of a mapped file, given back once it has been copied out.

Pages that were touched count as memory of the process until they are unmapped, so without this a
rank would seem to hold every file that it reads from. Tensors are only addresses here.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


def release(tensor: Tensor) -> None:
    """Drop the pages of `tensor`, which must be backed by a private, unmodified file mapping.

    The kernel keeps its own cache of the file, and pages that are touched again are read again.
    Memory that no file backs would lose its content.
    """
    if sys.platform != "linux":
        return
    storage = tensor.untyped_storage()
    offset = storage.data_ptr() % mmap.PAGESIZE  # a mapping begins and ends with whole pages
    address = ctypes.c_void_p(storage.data_ptr() - offset)
    length = ctypes.c_size_t(storage.nbytes() + offset)
    ctypes.CDLL(None).madvise(address, length, ctypes.c_int(mmap.MADV_DONTNEED))
