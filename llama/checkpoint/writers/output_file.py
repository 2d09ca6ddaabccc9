"""The files that a new checkpoint is made of: what each will hold, and how it is written.

Weights are streamed: writing a file takes as much memory as one chunk of one tensor. Folders,
temporary names and what makes a model are not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.checkpoint.writers.output_tensor import OutputTensor

Advance = Callable[[int], object]
"""Called with the number of bytes just written."""
Writing = Generator[None, None, None]
"""The writing of one file, which pauses after every tensor; closing it breaks it off."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_HASHED_AT_ONCE_BYTES = 16 * 2**20


class OutputFile(Protocol):
    """A file at `name`, a path inside the new folder, of about `nbytes`."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def write(self, path: Path, advance: Advance) -> Writing:
        """Write it to `path`; it is on the disk at the end.

        Raises OSError when it cannot be written, CheckpointError when a tensor cannot be made.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What a new checkpoint consists of: weights, and what is written after them, in order."""

    weights: Sequence[OutputFile]
    others: Sequence[OutputFile]

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in (*self.weights, *self.others))


@dataclass(frozen=True)
class SafetensorsFile:
    """Tensors by name. Wider dtypes come first, so that every tensor is aligned to its own."""

    name: str
    tensors: Mapping[str, OutputTensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, path: Path, advance: Advance) -> Writing:
        names = sorted(self.tensors, key=lambda name: -self.tensors[name].dtype.itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            tensor = self.tensors[name]
            begin, end = end, end + tensor.nbytes
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb", buffering=0) as file:
            write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
            for name in names:
                for chunk in self.tensors[name].chunks():
                    write_all(file.fileno(), chunk)
                    advance(len(chunk))
                yield
            os.fsync(file.fileno())


@dataclass(frozen=True)
class TextFile:
    """A small file of `text`."""

    name: str
    text: str

    @classmethod
    def json(cls, name: str, value: object) -> TextFile:
        return cls(name, json.dumps(value, indent=2) + "\n")

    @property
    def nbytes(self) -> int:
        return len(self.text.encode())

    def write(self, path: Path, advance: Advance) -> Writing:
        with open(path, "wb") as file:
            advance(file.write(self.text.encode()))
            file.flush()
            os.fsync(file.fileno())
        yield


@dataclass(frozen=True)
class CopiedFile:
    """The bytes of the file at `source`."""

    name: str
    source: Path
    nbytes: int

    def write(self, path: Path, advance: Advance) -> Writing:
        with open(self.source, "rb") as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        advance(self.nbytes)
        yield


@dataclass(frozen=True)
class Checklist:
    """The md5 of `listed`, files beside it that are written before it, as md5sum prints them."""

    name: str
    listed: Sequence[str]
    nbytes: int = 0

    def write(self, path: Path, advance: Advance) -> Writing:
        lines = [f"{_md5(path.with_name(name))}  {name}\n" for name in self.listed]
        yield from TextFile(self.name, "".join(lines)).write(path, lambda _: None)


def write_all(descriptor: int, content: bytes | memoryview, at: int | None = None) -> None:
    """Write all of `content`, at byte `at` or where the file stands."""
    left = memoryview(content)
    while left:
        count = os.write(descriptor, left) if at is None else os.pwrite(descriptor, left, at)
        left = left[count:]
        at = None if at is None else at + count


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_HASHED_AT_ONCE_BYTES):
            digest.update(block)
    return digest.hexdigest()
