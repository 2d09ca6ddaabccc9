"""A stretch of a file as the small reader that `pickletools` wants; never past its end."""

from __future__ import annotations

from llama.checkpoint.files.data_file import DataFile

_CHUNK_BYTES = 64 * 2**10


class ByteStream:
    """Bytes `begin` to `end` of `file`, fetched in chunks. Positions are those of the file."""

    def __init__(self, file: DataFile, begin: int, end: int) -> None:
        self._file = file
        self._position = begin
        self._end = min(end, file.size)
        self._chunk = b""
        self._chunk_begin = begin

    def tell(self) -> int:
        return self._position

    def read(self, length: int) -> bytes:
        """The next `length` bytes, or fewer when the stretch ends: no declared length is believed
        before the file has it."""
        length = min(length, self._end - self._position)
        if length > _CHUNK_BYTES:
            content = self._file.read(self._position, length)
        else:
            content = self._ahead(length)[:length]
        self._position += len(content)
        return content

    def readline(self) -> bytes:
        """Up to and with the next line break; without one when none comes within a chunk."""
        start = self._position - self._chunk_begin
        stop = self._chunk.find(b"\n", start) + 1 if start >= 0 else 0
        if stop:
            line = self._chunk[start:stop]
        else:
            ahead = self._ahead(_CHUNK_BYTES)
            line = ahead[: ahead.find(b"\n") + 1]
        self._position += len(line)
        return line

    def _ahead(self, length: int) -> bytes:
        """At least the next `length` bytes, as far as there are so many."""
        start = self._position - self._chunk_begin
        rest = self._end - self._position
        if not 0 <= start <= len(self._chunk) or len(self._chunk) - start < min(length, rest):
            self._chunk = self._file.read(self._position, min(_CHUNK_BYTES, rest))
            self._chunk_begin, start = self._position, 0
        return self._chunk[start : start + length]
