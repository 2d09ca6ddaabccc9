"""Which memory of this process a file backs, as /proc/self/maps tells on Linux.

Only such pages may be dropped and read again. Which file it is, is not asked: the heap has none.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class FileMappings:
    """The address ranges of this process that some file backs, as they are now."""

    def __init__(self) -> None:
        fields = (line.split(maxsplit=5) for line in _MAPS.read_text().splitlines())
        ranges = (field[0].split("-") for field in fields if field[4] != "0")  # inode 0: no file
        self._ranges = [(int(start, 16), int(end, 16)) for start, end in ranges]

    def back(self, tensor: Tensor) -> bool:
        """Whether every byte of the storage of `tensor` lies in one of them."""
        storage = tensor.untyped_storage()
        first, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        return first == end or any(low <= first and end <= high for low, high in self._ranges)
