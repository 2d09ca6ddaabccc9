"""Safetensors headers: what the reference writer makes, and every fault that one can have."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama.checkpoint.files.safetensors_file import MAX_MARKS, load_tensors, metadata
from llama.errors import CheckpointError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F16", "shape": [3, 1], "data_offsets": [8, 14]}


def write(
    path: Path, header: object, data: bytes = bytes(14), *, length: int | None = None
) -> Path:
    """A file of `header`, bytes or what becomes JSON; `length` is what the file says of it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    declared = len(raw) if length is None else length
    path.write_bytes(declared.to_bytes(8, "little") + raw + data)
    return path


def read(tensor: Any) -> Tensor:
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.read_into(out)
    return out


def test_what_the_reference_writes_is_read_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (24,), dtype=torch.uint8, generator=generator)
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8,
              torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8]  # fmt: skip
    tensors = {str(dtype): raw.view(dtype).clone() for dtype in dtypes}
    tensors |= {
        "matrix": torch.arange(6.0).view(2, 3),
        "scalar": torch.tensor(7.0),
        "nothing": torch.empty(0, 4),
        "flag": torch.tensor([True, False]),
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "é": "ü"})
    found = load_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        ours = read(found[name]).reshape(-1)
        assert ours.view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    assert metadata(path) == {"format": "pt", "é": "ü"}


def test_a_file_without_tensors_or_metadata_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {}, b"")
    assert load_tensors(path) == {}
    assert metadata(path) == {}


def entry(**changes: object) -> dict[str, Any]:
    return {"a": A, "b": {**B, **changes}}


FAULTS: dict[str, tuple[object, bytes, str]] = {
    "overlap": (entry(data_offsets=[4, 10]), bytes(10), "tensor 'b' overlaps the tensor before"),
    "same bytes": (entry(dtype="F32", shape=[2], data_offsets=[0, 8]), bytes(8), "overlaps"),
    "gap": (entry(data_offsets=[10, 16]), bytes(16), "tensor 'b' leaves a gap before it"),
    "gap at the start": ({"b": B}, bytes(14), "leaves a gap before it: it begins at 8, not 0"),
    "tail": (entry(), bytes(15), "has 1 bytes after its last tensor"),
    "all tail": ({}, bytes(3), "has 3 bytes after its last tensor"),
    "truncated": (entry(), bytes(13), "tensor 'b' would end at byte"),
    "end before begin": (entry(data_offsets=[14, 8]), bytes(14), "data_offsets must be"),
    "length": (entry(shape=[4]), bytes(14), "has 6 bytes, but its shape and dtype need 8"),
    "excess": (entry(shape=[2]), bytes(14), "has 6 bytes, but its shape and dtype need 4"),
    "negative offset": (entry(data_offsets=[-6, 0]), bytes(8), "data_offsets must be"),
    "one offset": (entry(data_offsets=[8]), bytes(14), "data_offsets must be"),
    "float offset": (entry(data_offsets=[8.0, 14.0]), bytes(14), "data_offsets must be"),
    "negative size": (entry(shape=[-3, -1]), bytes(14), "shape must be"),
    "boolean size": (entry(shape=[3, True]), bytes(14), "shape must be"),
    "size of text": (entry(shape="31"), bytes(14), "shape must be"),
    "huge size": (entry(shape=[2**40, 2**40]), bytes(14), "has 6 bytes, but"),
    "endless size": (entry(shape=[10**4000]), bytes(14), "shape must be"),
    "huge empty": (
        entry(shape=[0, 2**40, 2**40], data_offsets=[8, 8]), bytes(8), "no possible shape",
    ),
    "many dims": (entry(shape=[3] + [1] * 8), bytes(14), "at most 8 sizes"),
    "dtype": (entry(dtype="F7"), bytes(14), "tensor 'b' has dtype 'F7', which is unknown"),
    "quantised": (entry(dtype="F4"), bytes(14), "quantised below 8 bits; known: BOOL"),
    "dtype no text": (entry(dtype=["F32"]), bytes(14), "tensor 'b' has dtype a list"),
    "missing key": ({"a": A, "b": {"dtype": "F16", "shape": [3]}}, bytes(14), "tensor 'b' must"),
    "extra key": (entry(more=1), bytes(14), "must have dtype, shape and data_offsets"),
    "no object": ({"a": A, "b": 7}, bytes(14), "tensor 'b' must have"),
    "a list": (b"[1, 2]", b"", "its header begins with b'[1, 2]'"),
    "cut JSON": (b'{"a": ', b"", "not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "duplicate": (
        b'{"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}",
        bytes(8),
        "key 'a' is given twice",
    ),
    "deep": (b'{"a":' + b"[" * 200_000, b"", "nested too deeply"),
    "many values": (b'{"a":[' + b"{}," * MAX_MARKS + b"{}]}", b"", "made to do harm"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_header_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    header, data, message = FAULTS[fault]
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\1\2\3", "(3 bytes) is too short"),
        (bytes(64), "filled with zeros"),
        ((2**63).to_bytes(8, "little") + b"{}", "a header of 9,223,372,036,854,775,808 bytes"),
        ((3).to_bytes(8, "little") + b"{}", "a header of 3 bytes, but at most 2 are possible"),
        (b"PK\3\4" + bytes(60), "truncated, damaged or no .safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 14\n", "a Git LFS pointer to 14"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_header_above_the_limit_of_the_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(100_000_100)  # sparse
    with pytest.raises(CheckpointError, match="at most 100,000,000 are possible"):
        load_tensors(path)


@pytest.mark.parametrize("value", [7, {"a": 1}, ["format"]])
def test_metadata_must_be_texts(value: object, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"__metadata__": value}, b"")
    with pytest.raises(CheckpointError, match="__metadata__ must map names to texts"):
        metadata(path)


HOSTILE = {
    "lists": b'{"a":[' + b"[]," * 300_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 300_000 + b"{}]}",
    "too many lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "numbers": b'{"a":[' + b"999999," * 500_000 + b"9]}",
    "deep": b'{"a":' * 900_000,
    "text": b'{"__metadata__":{"a":"' + "ÿ€".encode() * 1_000_000 + b'"}}',
    "empty tensors": json.dumps(
        {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(40_000)}
    ).encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_takes_little_memory(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", HOSTILE[kind], b"")
    tracemalloc.start()
    try:
        tensors: object = load_tensors(path)
    except CheckpointError:
        tensors = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tensors is not None) == (kind in ("text", "empty tensors"))
    assert peak < 4 * len(HOSTILE[kind]) + 32 * 2**20


NAMES = st.sampled_from(["a", "b", "c", "__metadata__"])
SIZES = st.integers(-1, 4) | st.sampled_from([0, 2**31, 2**40, 2**61]) | st.integers()
OFFSETS = st.integers(-2, 20) | st.integers()
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "BOOL", "F4", "F32 "]) | JUNK,
        "shape": st.lists(SIZES, max_size=4) | JUNK,
        "data_offsets": st.lists(OFFSETS, min_size=2, max_size=2) | JUNK,
    }
)
HEADERS = st.dictionaries(NAMES, ENTRIES | JUNK, max_size=4)


def flipped(raw: bytes, changes: list[tuple[int, int]]) -> bytes:
    content = bytearray(raw)
    for position, value in changes:
        content[position % len(content)] = value
    return bytes(content)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    header=HEADERS | st.just({"a": A, "b": B}),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    n_bytes=st.integers(0, 20),
    is_cut=st.booleans(),
)
def test_a_fuzzed_file_gives_whole_tensors_or_a_checkpoint_error(
    header: dict[str, Any],
    changes: list[tuple[int, int]],
    n_bytes: int,
    is_cut: bool,
    tmp_path_factory: Any,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write(path, header, bytes(n_bytes))
    content = flipped(path.read_bytes(), changes)
    path.write_bytes(content[: len(content) - is_cut])
    try:
        tensors = load_tensors(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) <= n_bytes
        for tensor in tensors.values():
            assert read(tensor).numel() == math.prod(tensor.shape)
