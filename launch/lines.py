"""Lines of several ranks on one console: whole ones, each with the name of its rank.

Bytes in, bytes out: what ranks write is neither decoded nor understood.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass

STDOUT, STDERR = 1, 2


@dataclass(eq=False)
class RankStream:
    """The launcher's end of one stream of one rank.

    `pending` is what is not shown yet, and `since_s` when it began to come (monotonic).
    """

    rank: int
    fd: int
    console: Console
    prefix: bytes
    pending: bytes = b""
    since_s: float = 0.0

    def prefix_of(self, line: bytes) -> bytes:
        """Nothing for a line that says already which rank wrote it."""
        own = f"[rank {self.rank}".encode()
        return b"" if line.startswith((own + b" ", own + b"]")) else self.prefix


class Console:
    """stdout or stderr of the launcher, shared by all ranks. `say` is told if it cannot be used."""

    def __init__(self, fd: int, say: Callable[[str], None]) -> None:
        self._fd = fd
        self._say = say
        self._is_full = False
        self._unfinished: RankStream | None = None

    def write(self, pipe: RankStream, data: bytes) -> None:
        """Raises BrokenPipeError when nobody reads this stream."""
        if pipe.prefix:
            data = self._with_prefixes(pipe, data)
        while data and not self._is_full:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody we share it with has made it so
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise
            except OSError as error:  # a file on a full disk
                self._is_full = True
                name = {STDOUT: "stdout", STDERR: "stderr"}[self._fd]
                self._say(f"warning: {name} ends here ({error}); the ranks go on")

    def _with_prefixes(self, pipe: RankStream, data: bytes) -> bytes:
        is_continued = self._unfinished is pipe
        pieces = [] if is_continued or self._unfinished is None else [b"\n"]
        *lines, rest = data.split(b"\n")
        for line in [*(line + b"\n" for line in lines), *([rest] if rest else [])]:
            pieces += [line] if is_continued else [pipe.prefix_of(line), line]
            is_continued = False
        self._unfinished = pipe if rest else None
        return b"".join(pieces)
