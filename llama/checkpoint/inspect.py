"""What a checkpoint folder holds, from its headers: format, sizes, files, every tensor, oddities.

Nothing is loaded and no rank is known; a folder that cannot be opened is described as far as it
can be.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama.checkpoint import FORMATS, open_checkpoint
from llama.checkpoint.canonical import EMBEDDING, HEAD, split_dim
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.folder import NamesInside, files_below
from llama.checkpoint.reader import CheckpointReader, Format
from llama.checkpoint.wording import dtype_name
from llama.config import ModelConfig
from llama.errors import CheckpointError
from llama.registry import resolve


@dataclass(frozen=True)
class FileEntry:
    """A file by its name inside the folder; `size_bytes` is None for a link to nowhere."""

    name: str
    size_bytes: int | None
    n_tensors: int


@dataclass(frozen=True)
class TensorEntry:
    """A full tensor under its canonical name. `split`: see `canonical.split_dim`.

    One that shares all its bytes with an earlier one names that: the head `tied_to` the embedding,
    any other as `duplicate_of`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    files: tuple[str, ...]
    split: int | None
    tied_to: str | None = None
    duplicate_of: str | None = None

    @property
    def same_as(self) -> str | None:
        """The tensor whose bytes it shares, tied or duplicated."""
        return self.tied_to or self.duplicate_of


@dataclass(frozen=True)
class Inspection:
    """`problem` is the error that opening gave; then config is None and there are no tensors."""

    folder: Path
    format: str | None
    files: tuple[FileEntry, ...]
    config: ModelConfig | None = None
    tensors: tuple[TensorEntry, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: CheckpointError | None = None

    @property
    def n_parameters(self) -> int:
        """Weights of the model, shared ones counted once."""
        return sum(math.prod(entry.shape) for entry in self.tensors if entry.same_as is None)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as they are stored, shared ones counted once."""
        return sum(entry.size_bytes for entry in self.tensors if entry.same_as is None)

    @property
    def dtypes(self) -> dict[str, int]:
        """Stored dtype -> number of tensors, most frequent first, shared ones counted once."""
        own = (entry.dtype for entry in self.tensors if entry.same_as is None)
        return dict(Counter(own).most_common())

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON: the fields, those of the entries, and the properties.

        folder str, format str or null, problem str or null, config object or null, n_parameters,
        size_bytes, dtypes {dtype: count}, files [{name, size_bytes, n_tensors}], tensors [{name,
        shape, dtype, size_bytes, files, split, tied_to, duplicate_of}], ignored {stored name:
        reason}, notes.
        """
        return {
            "folder": str(self.folder),
            "format": self.format,
            "problem": None if self.problem is None else str(self.problem),
            "config": None if self.config is None else asdict(self.config),
            "n_parameters": self.n_parameters,
            "size_bytes": self.size_bytes,
            "dtypes": self.dtypes,
            "files": [asdict(entry) for entry in self.files],
            "tensors": [asdict(entry) for entry in self.tensors],
            "ignored": dict(self.ignored),
            "notes": list(self.notes),
        }


def inspect_folder(folder: Path, *, format: str | None = None) -> Inspection:
    """Open the checkpoint in `folder`, in `format` or the one that recognises it, and describe it.

    Raises CheckpointError where there is nothing to describe, UsageError for an unknown format.
    """
    try:
        with closing(open_checkpoint(folder, format=format)) as reader:
            tensors = _tensor_entries(reader)
    except CheckpointError as error:
        format = format or _recognised(folder)
        if format is None:
            raise
        files = tuple(_file_entry(folder, name, 0) for name in files_below(folder))
        return Inspection(folder, format, files, problem=error)
    own = (entry for entry in tensors if entry.same_as is None)
    holders = Counter(name for entry in own for name in entry.files)
    return Inspection(
        folder,
        reader.format,
        files=tuple(_file_entry(folder, name, holders[name]) for name in files_below(folder)),
        config=reader.config,
        tensors=tensors,
        ignored=reader.ignored,
        notes=(*reader.warnings, *reader.notes),
    )


def _recognised(folder: Path) -> str | None:
    for name in FORMATS:
        known: Format = resolve(FORMATS, name, kind="checkpoint format")
        if folder.is_dir() and known.recognises(folder):
            return name
    return None


def _file_entry(folder: Path, name: str, n_tensors: int) -> FileEntry:
    try:
        size_bytes: int | None = os.stat(folder / name).st_size
    except OSError:
        size_bytes = None
    return FileEntry(name, size_bytes, n_tensors)


def _tensor_entries(reader: CheckpointReader) -> tuple[TensorEntry, ...]:
    """Every tensor. Raises CheckpointError when one lies in no file of the folder."""
    names = NamesInside(reader.folder)
    first: dict[Hashable, str] = {}
    entries = []
    for name, tensor in reader.tensors.items():
        same = first.setdefault(_place(tensor), name)
        is_tied = (same, name) == (EMBEDDING, HEAD)
        entry = TensorEntry(
            name=name,
            shape=tensor.shape,
            dtype=dtype_name(tensor.dtype),
            size_bytes=tensor.nbytes,
            files=names.of(tensor),
            split=split_dim(name),
            tied_to=same if is_tied else None,
            duplicate_of=None if is_tied or same == name else same,
        )
        entries.append(entry)
    return tuple(entries)


def _place(tensor: StoredTensor) -> Hashable:
    """The same for tensors of the same bytes read in the same order; its own for memory."""
    extents = tensor.extents()
    if not extents or any(part.path is None for part in tensor.parts):
        return id(tensor)
    # a square matrix and its transpose have the same extents
    parts = tuple((part.shape, part.file_order) for part in tensor.parts)
    return tensor.dtype, tensor.dim, parts, tuple(extents)
