"""A .safetensors file: where each of its tensors lies, from a header that nobody vouches for.

Eight bytes of length (little-endian), a JSON object of that length, and the tensors' bytes without
gap or overlap (https://github.com/huggingface/safetensors#format). No value is read here, and the
memory taken is a small multiple of the header whatever it declares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.wording import short
from llama.errors import CheckpointError
from llama.files.json_file import parse_object
from llama.files.signature import accident, read_head

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own implementation."""
MAX_MARKS = 2**20
"""Brackets, commas and colons in a header; some 60,000 tensors, far above any model read here."""

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_MAX_DIMS = 8
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def load_tensors(path: Path) -> dict[str, FileTensor]:
    """The tensors of the file by name, in the order of its header.

    Raises CheckpointError that names the file, and the tensor where one is at fault.
    """
    header, file, data_start = _read_header(path)
    tensors: dict[str, FileTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == _METADATA:
            continue
        dtype, shape, begin, end = _entry(path, name, entry)
        _check_range(file, name, (begin, end), data_start, math.prod(shape) * dtype.itemsize)
        ranges.append((begin, end, name))
        tensors[name] = FileTensor.of(
            file, data_start + begin, dtype=dtype, shape=shape, name=repr(name[:120])
        )
    _check_tiling(file, ranges, data_start)
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The text that the writer put beside the tensors. Raises CheckpointError."""
    header, file, _ = _read_header(path)
    file.close()
    found = header.get(_METADATA, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise CheckpointError(f"{path}: {_METADATA} must map names to texts")
    return found


def _read_header(path: Path) -> tuple[dict[str, Any], DataFile, int]:
    """The header, the file, and the byte where the tensors begin."""
    file = DataFile(path)
    cause = accident(read_head(path))
    if cause is not None:
        raise CheckpointError(f"{path} ({file.size:,} bytes) is {cause}")
    if file.size < _LENGTH_BYTES:
        raise CheckpointError(
            f"{path} ({file.size:,} bytes) is too short for a .safetensors file; download it again"
        )
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    limit = min(MAX_HEADER_BYTES, file.size - _LENGTH_BYTES)
    if length > limit:
        raise CheckpointError(
            f"{path} declares a header of {length:,} bytes, but at most {limit:,} are possible: "
            f"it is truncated, damaged or no .safetensors file"
        )
    raw = file.read(_LENGTH_BYTES, length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path} is no .safetensors file: its header begins with {raw[:8]!r}")
    n_marks = sum(raw.count(mark) for mark in (b"{", b"[", b",", b":"))
    if n_marks > MAX_MARKS:
        raise CheckpointError(
            f"{path} has a header of {n_marks:,} values, more than the {MAX_MARKS:,} that any "
            f"model needs; it is damaged or made to do harm"
        )
    return parse_object(raw, path), file, _LENGTH_BYTES + length


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    where = f"{path}: tensor {name[:120]!r}"
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets and nothing else")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{where} has dtype {short(dtype)}, which is unknown or quantised below 8 bits; known: "
            f"{', '.join(_DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MAX_DIMS:
        raise CheckpointError(
            f"{where}: shape must be a list of at most {_MAX_DIMS} sizes, not {short(shape)}"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be [begin, end], not {short(offsets)}")
    return _DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def _check_range(
    file: DataFile, name: str, span: tuple[int, int], data_start: int, n_bytes: int
) -> None:
    begin, end = span
    where = f"{file.path}: tensor {name[:120]!r}"
    if data_start + end > file.size:
        raise CheckpointError(
            f"{where} would end at byte {data_start + end:,} of {file.size:,}; the file is "
            f"truncated or damaged, download it again"
        )
    if end - begin != n_bytes:
        raise CheckpointError(
            f"{where} has {end - begin:,} bytes, but its shape and dtype need {n_bytes:,}"
        )


def _check_tiling(file: DataFile, ranges: list[tuple[int, int, str]], data_start: int) -> None:
    """Every byte after the header belongs to one tensor, so nothing is hidden or shared."""
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            fault = (
                "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            )
            raise CheckpointError(
                f"{file.path}: tensor {name[:120]!r} {fault}: it begins at {begin:,}, not "
                f"{position:,}"
            )
        position = end
    tail = file.size - data_start - position
    if tail:
        raise CheckpointError(
            f"{file.path} has {tail:,} bytes after its last tensor; it is damaged"
        )


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)
