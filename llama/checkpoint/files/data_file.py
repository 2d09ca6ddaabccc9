"""One file of a checkpoint, read by position: no mapping, no shared offset, any number of threads.

Reading by position takes what was asked for and no page more, in requests as large as the caller's
buffer; a mapped file is fetched in small steps as it is touched, which is slow over a network.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama.errors import CheckpointError
from llama.files.signature import regular_file

MAX_IDLE_DESCRIPTORS = 32
"""A checkpoint may have thousands of files, and a process as few as a thousand descriptors."""


class _LastRead:
    """The files read last, which keep their descriptors; whatever falls out is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, weakref.ref[DataFile]] = {}  # the one read last comes last

    def add(self, file: DataFile) -> None:
        with self._lock:
            self._files.pop(id(file), None)
            self._files[id(file)] = weakref.ref(file)
            if len(self._files) <= MAX_IDLE_DESCRIPTORS:
                return
            oldest = self._files.pop(next(iter(self._files)))()
        if oldest is not None:
            oldest.close()  # if somebody reads it now, it comes back here afterwards


class DataFile:
    """The file at `path`, opened when it is first read. Raises CheckpointError unless regular.

    A process keeps at most MAX_IDLE_DESCRIPTORS files open that no thread reads.
    """

    _last_read = _LastRead()

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None  # first: __del__ also runs when the next lines raise
        self._lock = threading.Lock()
        self._n_readers = 0
        self.path = path
        self.size = regular_file(path)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, of bytes, from byte `offset`.

        Raises CheckpointError when the file has become shorter or cannot be read.
        """
        filled = 0
        with self._opened() as descriptor:
            while filled < len(buffer):
                try:
                    count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
                except OSError as error:
                    raise CheckpointError(
                        f"cannot read {self.path} at byte {offset + filled:,}: {error.strerror}"
                    ) from error
                if count == 0:
                    raise CheckpointError(
                        f"{self.path} ends at byte {offset + filled:,}, but had {self.size:,} "
                        f"bytes when it was opened; it was changed while it was read"
                    )
                filled += count

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from byte `offset`; for headers."""
        content = bytearray(length)
        self.read_into(memoryview(content), offset)
        return bytes(content)

    def close(self) -> None:
        """Give the descriptor back, unless somebody reads; a later read opens the file again."""
        with self._lock:
            if self._descriptor is not None and not self._n_readers:
                os.close(self._descriptor)
                self._descriptor = None

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor that nobody closes meanwhile."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = _opened(self.path)
            self._n_readers += 1
            descriptor = self._descriptor
        try:
            yield descriptor
        finally:
            with self._lock:
                self._n_readers -= 1
            self._last_read.add(self)

    def __del__(self) -> None:
        if self._descriptor is not None:
            self.close()


def _opened(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}") from error
    if hasattr(os, "posix_fadvise"):
        # The requests are large by themselves: what the kernel adds ahead belongs to other ranks.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor
