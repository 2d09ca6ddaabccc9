"""Memory that the ranks of a host share for the time of a load: two halves, a slot a rank in each.

While everybody takes from one half, the other one is filled. It lies in a file of /dev/shm, or of
the folder for temporary files, which has a name only until everybody has it open.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from llama.parallel.agreement import share_texts
from llama.parallel.comm import Communicator

RING_BYTES = 64 * 2**20
_SMALLEST_BYTES = 4 * 2**20
_PAGE_BYTES = 4096
PREFIX = "llama-load-"


class Ring:
    """`memory` as slots of `slot_bytes`."""

    def __init__(self, memory: Tensor, n_ranks: int) -> None:
        self.slot_bytes = memory.numel() // (2 * n_ranks) // _PAGE_BYTES * _PAGE_BYTES
        self._memory = memory
        self._n_ranks = n_ranks

    def slot(self, turn: int, rank: int) -> Tensor:
        """The bytes that rank `rank` fills in turn number `turn`, and others take until the next
        but one."""
        start = ((turn % 2) * self._n_ranks + rank) * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]


@contextmanager
def shared_ring(local: Communicator) -> Iterator[Ring | None]:
    """A ring that all ranks of `local` have mapped; None on all where there is no room. Collective.

    None as well where a rank cannot map it: folders of one name need not be one folder.
    """
    path = _reserve() if local.rank == 0 else None
    try:
        name = share_texts(local, str(path or ""))[0]
        memory = _mapped(Path(name)) if name else None
        # After this everybody has it, and nobody needs the name.
        is_mapped = local.all_gather(torch.tensor([int(memory is not None)]), dim=0)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
    yield None if memory is None or not is_mapped.all() else Ring(memory, local.size)


def _reserve() -> Path | None:
    """A new file with all its blocks reserved: without them writing would kill the process."""
    for folder in _folders():
        size = RING_BYTES
        while size >= _SMALLEST_BYTES:
            with suppress(OSError):
                return _file_of(size, folder)
            size //= 2
    return None


def _folders() -> Iterator[Path]:
    yield Path("/dev/shm")
    with suppress(FileNotFoundError):  # none of the usual ones can be written to
        yield Path(tempfile.gettempdir())


def _file_of(size: int, folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)  # only its owner may open it
    try:
        os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return Path(name)


def _mapped(path: Path) -> Tensor | None:
    """The file's bytes, shared with every process that maps them; gone with the tensor."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return torch.frombuffer(memory, dtype=torch.uint8)
