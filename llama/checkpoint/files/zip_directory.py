"""Where the members of a zip archive lie, for archives whose members are stored as they are.

Nothing is unpacked, and no declared size is believed before the file has it. An archive may be a
stretch of a larger file. Which members mean what is not known here.

Source: the .ZIP file format specification (APPNOTE 6.3), sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from llama.checkpoint.files.data_file import DataFile
from llama.errors import CheckpointError

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Some 100,000 members."""

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_IS_ELSEWHERE = 2**32 - 1
_EXTRA_64 = 1
_ENCRYPTED = 1


class DamagedZipError(ValueError):
    """The directory at the end of the archive is not there or contradicts itself."""


@dataclass(frozen=True)
class Member:
    """`size` bytes from byte `offset` of the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    name: bytes
    flags: int
    method: int
    packed: int
    size: int
    header: int


def read_directory(file: DataFile, begin: int, end: int) -> dict[str, Member]:
    """Name -> member of the archive that fills bytes `begin` to `end` of `file`.

    Raises DamagedZipError when the archive is cut off or contradicts itself, and CheckpointError
    for what torch.save never does: compression, encryption, a name twice, members that overlap.
    """
    directory, at, n_entries = _directory(file, begin, end)
    entries = list(_entries(directory))
    if len(entries) != n_entries:
        raise DamagedZipError
    members: dict[str, Member] = {}
    limit = at
    for entry in sorted(entries, key=lambda entry: entry.header, reverse=True):
        member = _located(file, entry, begin, limit)
        limit = begin + entry.header
        # programs that look a member up without regard to case would take the other one
        if member.name.lower() in members:
            raise CheckpointError(f"{file.path} is damaged: its archive lists a member twice")
        members[member.name.lower()] = member
    return {member.name: member for member in reversed(members.values())}


def _directory(file: DataFile, begin: int, end: int) -> tuple[bytes, int, int]:
    """The central directory, where it begins, and how many entries it is said to have."""
    end_at = end - _END.size  # the record has no comment in an archive of torch
    magic, *_, n_entries, size, offset, comment = _fields(_END, file, begin, end_at)
    if magic != b"PK\5\6" or comment:
        raise DamagedZipError
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at >= begin and file.read(locator_at, 4) == b"PK\6\7":
        _, _, record, _ = _fields(_END64_LOCATOR, file, begin, locator_at)
        end_at = begin + record
        if end_at > locator_at - _END64.size:
            raise DamagedZipError
        magic, *_, n_entries, size, offset = _fields(_END64, file, begin, end_at)
        if magic != b"PK\6\6":
            raise DamagedZipError
    if begin + offset + size != end_at or size > MAX_DIRECTORY_BYTES:
        raise DamagedZipError
    return file.read(begin + offset, size), begin + offset, n_entries


def _fields(kind: struct.Struct, file: DataFile, begin: int, at: int) -> tuple[Any, ...]:
    if at < begin:
        raise DamagedZipError
    return kind.unpack(file.read(at, kind.size))


def _entries(directory: bytes) -> list[_Entry]:
    entries: list[_Entry] = []
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise DamagedZipError
        fields = _ENTRY.unpack_from(directory, at)
        magic, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_length, extra_length, comment_length = fields[8:13]
        header = fields[16]
        name_at = at + _ENTRY.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        if magic != b"PK\1\2" or at > len(directory):
            raise DamagedZipError
        sizes = _sizes64(directory[extra_at : extra_at + extra_length], [size, packed, header])
        name = directory[name_at:extra_at]
        entries.append(_Entry(name, flags, method, sizes[1], sizes[0], sizes[2]))
    return entries


def _sizes64(extra: bytes, sizes: list[int]) -> list[int]:
    """`sizes` with those that did not fit 32 bits taken from the extra field, in its order."""
    if _IS_ELSEWHERE not in sizes:
        return sizes
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise DamagedZipError
        if kind == _EXTRA_64:
            held = extra[at + 4 :][: length & ~7]
            values = [value for (value,) in struct.iter_unpack("<Q", held)]
            try:
                return [values.pop(0) if size == _IS_ELSEWHERE else size for size in sizes]
            except IndexError:
                raise DamagedZipError from None
        at += 4 + length
    raise DamagedZipError


def _located(file: DataFile, entry: _Entry, begin: int, limit: int) -> Member:
    """Where the content is: after a header of its own. It must end before byte `limit`."""
    try:
        name = entry.name.decode()
    except UnicodeDecodeError:
        raise DamagedZipError from None
    if entry.flags & _ENCRYPTED or entry.method:
        raise CheckpointError(
            f"{file.path} was packed again with compression and cannot be read by position; get "
            f"the original file"
        )
    if entry.size > limit - begin:
        raise CheckpointError(
            f"{file.path} is damaged: its archive declares {entry.size:,} bytes of {name[:80]!r} "
            f"in {file.size:,} bytes of file"
        )
    header_at = begin + entry.header
    if header_at + _LOCAL.size > limit:
        raise DamagedZipError
    magic, *_, name_length, extra_length = _fields(_LOCAL, file, begin, header_at)
    offset = header_at + _LOCAL.size + name_length + extra_length
    if magic != b"PK\3\4" or entry.packed != entry.size or offset + entry.size > limit:
        raise DamagedZipError
    if file.read(header_at + _LOCAL.size, name_length) != entry.name:
        raise DamagedZipError
    return Member(name, offset, entry.size)
