"""The `.metadata` of a torch.distributed.checkpoint folder: a pickle of which tensor lies where.

It is read like every pickle here, with nothing run: the classes of torch.distributed.checkpoint
arrive as records. What the tensors are for is not known here.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py (torch 2.1 to 2.13).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.checkpoint.files.byte_stream import ByteStream
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.unpickle import MAX_BYTES, Record, unpickle
from llama.errors import CheckpointError
from llama.files.signature import accident, read_head

METADATA = ".metadata"

_CLASSES = "torch.distributed.checkpoint.metadata"
_TENSOR, _BYTES = f"{_CLASSES}.TensorStorageMetadata", f"{_CLASSES}.BytesStorageMetadata"
_ALLOWED = re.compile(
    re.escape(_CLASSES) + r"\.(Metadata|TensorStorageMetadata|BytesStorageMetadata|MetadataIndex"
    r"|ChunkStorageMetadata|TensorProperties|StorageMeta|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.filesystem\.(_StorageInfo|_StoragePrefix)"
    r"|torch\.(Size|(b?float|u?int|complex)\d+|float8_\w+|bool|serialization\._get_layout)"
    r"|collections\.OrderedDict|pathlib\.(Posix|PurePosix)?Path"
)


@dataclass(frozen=True)
class Chunk:
    """The block of a tensor at `offsets`, which is `length` bytes from byte `at` of `file`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    at: int
    length: int


@dataclass(frozen=True)
class DcpMetadata:
    """Name -> full shape and chunks of every tensor; `others` are names of what is no tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    chunks: Mapping[str, tuple[Chunk, ...]]
    others: tuple[str, ...]


def read_metadata(folder: Path) -> DcpMetadata:
    """The content of `.metadata` in `folder`. Raises CheckpointError."""
    file = DataFile(folder / METADATA)
    if file.size > MAX_BYTES:
        raise CheckpointError(
            f"{file.path} has {file.size:,} bytes; at most {MAX_BYTES:,} are plausible"
        )
    cause = accident(read_head(file.path))
    if cause is not None:
        raise CheckpointError(f"{file.path} ({file.size:,} bytes) is {cause}")
    raw = unpickle(
        ByteStream(file, 0, file.size),
        file.path,
        allowed=lambda name: _ALLOWED.fullmatch(name) is not None,
    )
    try:
        return _metadata(raw)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{file.path} is damaged or of an unknown version of torch.distributed.checkpoint "
            f"({type(error).__name__}); save the checkpoint again"
        ) from None


def _metadata(raw: object) -> DcpMetadata:
    content = _fields(raw, f"{_CLASSES}.Metadata")
    places: dict[tuple[str, tuple[int, ...]], Mapping[str, Any]] = {}
    for key, place in content["storage_data"].items():
        index = _fields(key, f"{_CLASSES}.MetadataIndex")
        if index.get("offset") is not None:
            places[str(index["fqn"]), _sizes(index["offset"])] = _fields(place)
    shapes: dict[str, tuple[int, ...]] = {}
    chunks: dict[str, tuple[Chunk, ...]] = {}
    others: list[str] = []
    for name, described in content["state_dict_metadata"].items():
        if not isinstance(name, str) or not isinstance(described, Record):
            raise TypeError
        if described.name == _BYTES:
            others.append(name)
            continue
        tensor = _fields(described, _TENSOR)
        shapes[name] = _sizes(tensor["size"])
        blocks = [_fields(chunk) for chunk in tensor["chunks"]]
        areas = [(_sizes(block["offsets"]), _sizes(block["sizes"])) for block in blocks]
        if any(not len(o) == len(s) == len(shapes[name]) for o, s in areas):
            raise ValueError
        chunks[name] = tuple(
            _chunk(offsets, sizes, places[name, offsets]) for offsets, sizes in areas
        )
    return DcpMetadata(shapes, chunks, tuple(others))


def _chunk(offsets: tuple[int, ...], sizes: tuple[int, ...], place: Mapping[str, Any]) -> Chunk:
    file = place["relative_path"]
    at, length = _sizes((place["offset"], place["length"]))
    if not isinstance(file, str) or place.get("transform_descriptors"):
        raise TypeError
    return Chunk(offsets, sizes, file, at, length)


def _fields(raw: object, name: str | None = None) -> Mapping[str, Any]:
    """The attributes of a record, of class `name` if one is given."""
    if not isinstance(raw, Record) or not isinstance(raw.state, dict):
        raise TypeError
    if name is not None and raw.name != name:
        raise TypeError
    return raw.state


def _sizes(raw: object) -> tuple[int, ...]:
    if isinstance(raw, Record) and raw.name == "torch.Size":
        (raw,) = raw.args
    if not isinstance(raw, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in raw):
        raise ValueError
    return raw
