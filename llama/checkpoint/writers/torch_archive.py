"""A file of torch.save, written without its tensors ever being in memory together.

torch writes the archive around tensors that have a size but no memory, leaving holes where their
bytes belong; these are filled one chunk at a time. The pickle in it is torch's own.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.torch_file import load_object
from llama.checkpoint.files.zip_directory import read_directory
from llama.checkpoint.writers.output_file import Advance, Writing, write_all
from llama.checkpoint.writers.output_tensor import OutputTensor
from llama.errors import OutputError

_ENTRY = struct.Struct("<4s6H3I5H2I")
_ENTRY_CHECKSUM_AT = 16
_DESCRIPTOR_MAGIC = b"PK\7\10"


@dataclass(frozen=True)
class TorchFile:
    """`content` as torch.save writes it: dicts whose leaves are OutputTensors or plain values.

    An OutputTensor that is there twice is stored once.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in _leaves(self.content).values())

    def write(self, path: Path, advance: Advance) -> Writing:
        _save_hollow(self.content, path)
        holes: dict[int, FileTensor] = {}
        _match(self.content, load_object(path), holes)
        checksums: dict[int, int] = {}
        with open(path, "r+b", buffering=0) as file:
            for key, tensor in _leaves(self.content).items():
                at = begin = holes[key].offset
                checksum = 0
                for chunk in tensor.chunks():
                    write_all(file.fileno(), chunk, at)
                    checksum = zlib.crc32(chunk, checksum)
                    at += len(chunk)
                    advance(len(chunk))
                checksums[begin] = checksum
                yield
            _correct(path, file.fileno(), checksums)
            os.fsync(file.fileno())


def _leaves(content: Mapping[str, Any]) -> dict[int, OutputTensor]:
    """Every tensor once, by identity."""
    found: dict[int, OutputTensor] = {}
    for value in content.values():
        if isinstance(value, OutputTensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            found |= _leaves(value)
    return found


def _save_hollow(content: Mapping[str, Any], path: Path) -> None:
    """The archive with holes where tensors belong. Raises OutputError, OSError."""
    with open(path, "wb"):
        pass  # what the system says against it is clearer than what torch does
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(_hollow(content), path)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise OutputError(
            f"cannot write {path}: {reason}; see whether the disk is full or files have a limit"
        ) from error


def _hollow(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree with a fake tensor for every OutputTensor."""
    with FakeTensorMode():
        fakes = {
            key: torch.empty(tensor.shape, dtype=tensor.dtype)
            for key, tensor in _leaves(content).items()
        }
    return _replaced(content, fakes)


def _replaced(content: Mapping[str, Any], fakes: Mapping[int, Tensor]) -> dict[str, Any]:
    return {
        name: fakes[id(value)]
        if isinstance(value, OutputTensor)
        else _replaced(value, fakes)
        if isinstance(value, dict)
        else value
        for name, value in content.items()
    }


def _match(content: Mapping[str, Any], saved: Any, holes: dict[int, FileTensor]) -> None:
    """Find where the file `saved` has the tensors of `content`."""
    for name, value in content.items():
        if isinstance(value, OutputTensor):
            hole = saved[name]
            assert (hole.shape, hole.dtype) == (value.shape, value.dtype), name
            holes[id(value)] = hole
        elif isinstance(value, dict):
            _match(value, saved[name], holes)


def _correct(path: Path, descriptor: int, checksums: Mapping[int, int]) -> None:
    """Put the checksums of the members that begin at these bytes where the archive has those of
    the holes: in its directory, and behind the member itself.

    torch does not look at them, other programs that open zip archives do.
    """
    file = DataFile(path)
    members = read_directory(file, 0, file.size)
    file.close()
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
    for _ in members:
        fields = _ENTRY.unpack(os.pread(descriptor, _ENTRY.size, at))
        lengths = fields[10:13]  # of the name, of the extra field, of the comment
        member = members[os.pread(descriptor, lengths[0], at + _ENTRY.size).decode()]
        if member.offset in checksums and member.size:
            checksum = checksums[member.offset].to_bytes(4, "little")
            write_all(descriptor, checksum, at + _ENTRY_CHECKSUM_AT)
            end = member.offset + member.size
            if os.pread(descriptor, 4, end) == _DESCRIPTOR_MAGIC:
                write_all(descriptor, checksum, end + 4)
        at += _ENTRY.size + sum(lengths)
