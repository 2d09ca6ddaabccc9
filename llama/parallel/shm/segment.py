"""A piece of memory that several processes map, and that nobody has to tidy up.

The memory has no name of its own: its maker holds it open and the others reach it through the
maker's entry in /proc. Where that is forbidden it is a file in /dev/shm for the blink of an eye in
which all map it. All of it is reserved at once: too little memory is an error here and no SIGBUS
later.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
import tempfile
from contextlib import suppress

from llama.errors import HardwareError
from llama.parallel.shm.layout import SegmentLayout

NONCE_BYTES = 16
_FOLDER = "/dev/shm"


class Segment:
    """`path` is where other processes find it until `seal`; `nonce` is how they recognise it."""

    def __init__(self, memory: mmap.mmap, layout: SegmentLayout, *, path: str, fd: int) -> None:
        self.memory = memory
        self.layout = layout
        self.path = path
        self._fd = fd

    @property
    def nonce(self) -> bytes:
        begin = self.layout.nonce_offset
        return self.memory[begin : begin + NONCE_BYTES]

    @classmethod
    def create(cls, layout: SegmentLayout, *, is_named: bool = False) -> Segment:
        """New zeroed memory; `is_named`: a file in /dev/shm.

        Raises HardwareError where there is too little of it.
        """
        fd, path = -1, ""
        try:
            if is_named:
                fd, path = tempfile.mkstemp(prefix="llama-", dir=_FOLDER)
            else:
                fd = _anonymous_file()
                path = f"/proc/{os.getpid()}/fd/{fd}"
            os.posix_fallocate(fd, 0, layout.n_bytes)
            segment = cls(mmap.mmap(fd, layout.n_bytes), layout, path=path, fd=fd)
        except (OSError, ValueError) as error:
            if fd >= 0:
                os.close(fd)
            if is_named and path:
                os.unlink(path)
            raise HardwareError(_refusal(layout, is_named=is_named, error=error)) from error
        begin = layout.nonce_offset
        segment.memory[begin : begin + NONCE_BYTES] = secrets.token_bytes(NONCE_BYTES)
        return segment

    @classmethod
    def attach(cls, path: str, layout: SegmentLayout, *, nonce: bytes) -> Segment:
        """What another process made. Raises HardwareError when it cannot be reached from here."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size != layout.n_bytes:
                    raise ValueError("it is something else")
                memory = mmap.mmap(fd, layout.n_bytes)
            finally:
                os.close(fd)
            segment = cls(memory, layout, path=path, fd=-1)
            if segment.nonce != nonce:
                raise ValueError("it is something else")
        except (OSError, ValueError) as error:
            raise HardwareError(f"cannot map shared memory at {path} ({error})") from error
        return segment

    def seal(self) -> None:
        """Nobody can map it from now on. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.path.startswith(_FOLDER):
            with suppress(FileNotFoundError):  # each rank does this, in case one of them is killed
                os.unlink(self.path)


def _anonymous_file() -> int:
    if sys.platform != "linux":
        raise OSError("memory without a name needs Linux")
    return os.memfd_create("llama", os.MFD_CLOEXEC)


def _refusal(layout: SegmentLayout, *, is_named: bool, error: Exception) -> str:
    need = f"{layout.n_bytes / 2**20:.1f} MiB of shared memory for {layout.n_ranks} ranks"
    if not is_named:
        return f"cannot have {need} ({error}); free memory or raise the limit of this process"
    room = "no such folder"
    with suppress(OSError):
        status = os.statvfs(_FOLDER)
        room = f"{status.f_bavail * status.f_frsize / 2**20:.1f} MiB free"
    return (
        f"cannot have {need} in {_FOLDER}, {room} ({error}); give the container a larger one "
        "(docker --shm-size)"
    )
