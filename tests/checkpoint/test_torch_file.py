"""One file of torch.save, of either container: what it holds, what hides code, what is broken."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import tarfile
import time
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llama.checkpoint.files import torch_pickle, zip_directory
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.torch_file import load_object, load_tensor_at, load_tensors
from llama.checkpoint.files.torch_pickle import Opaque
from llama.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
NAME = "consolidated.00.pth"
LEGACY = {"_use_new_zipfile_serialization": False}
CONTAINERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy": LEGACY,
    "legacy, protocol 4": {**LEGACY, "pickle_protocol": 4},
}
in_every_container = pytest.mark.parametrize("container", CONTAINERS)


class Payload:
    """Runs a shell command when it is unpickled without protection."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def read(tensor: object) -> Tensor:
    assert isinstance(tensor, FileTensor)
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    assert tensor.read_into(out) == out.nbytes
    return out


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def overdeclared(content: bytes) -> bytes:
    """The same archive, whose last member claims 2 GiB in the directory."""
    size_at = content.rindex(b"PK\x01\x02") + 24
    return content[:size_at] + (2**31).to_bytes(4, "little") + content[size_at + 4 :]


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def message_of(path: Path, load: Callable[[Path], object] = load_tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


GOOD = saved(TENSORS)
OLD = saved(TENSORS, **LEGACY)
MEMBERS = members_of(GOOD)
QUANTISED = b"\x80\x02}U\x01actorch._utils\n_rebuild_qtensor\n)Rs."
OLD_KEYS = OLD[OLD.rindex(b"]q\x00(X") : OLD.rindex(b"e.") + 2]
OTHER_ORDER = OLD.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13476939516\n"
SCRIPT = zip_of({"m/data.pkl": b"\x80\x02N.", "m/constants.pkl": b"", "m/version": b"3"})
BAD_FILES = {
    "empty": (b"", "(0 bytes) is empty"),
    "zeros": (bytes(4096), "(4,096 bytes) is filled with zeros"),
    "LFS pointer": (LFS, f"({len(LFS)} bytes) is a Git LFS pointer to 13,476,939,516 bytes"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "is an HTML page"),
    "bare web page": (b"<HTML><body>403</body></HTML>", "is an HTML page"),
    "server error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "error message"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "gzip"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "JSON": (b'{"error": "Unauthorized"}', "not a file of torch.save: it begins with b'{\"error"),
    "half": (GOOD[: len(GOOD) // 2], f"truncated or damaged: {len(GOOD) // 2:,} bytes are there"),
    "last byte missing": (GOOD[:-1], "truncated or damaged"),
    "only the first bytes": (GOOD[:30], "truncated or damaged"),
    "other zip": (zip_of({"readme": b"hello"}), "no data.pkl in it"),
    "compressed": (zip_of(MEMBERS, zipfile.ZIP_DEFLATED), "again with compression"),
    "zip bomb": (
        zip_of({**MEMBERS, "bomb": bytes(10_000_000)}, zipfile.ZIP_DEFLATED),
        "packed again with compression",
    ),
    "overdeclared": (overdeclared(GOOD), "declares 2,147,483,648 bytes of"),
    "listed twice": (GOOD.replace(b"archive/data/1", b"archive/data/0"), "lists a member twice"),
    "byte order": (zip_of({**MEMBERS, "archive/byteorder": b"big"}), "of another byte order"),
    "bare pickle": (pickle.dumps({"a": 1}), "is a bare pickle, not a file of torch.save"),
    "old half": (OLD[:-20], f"is truncated: {len(OLD) - 20:,} of {len(OLD):,} bytes are there"),
    "old listing cut": (OLD[:200], "is damaged: its list of tensors is no pickle"),
    "old header": (OLD[:15] + OLD[19:], "is damaged"),
    "old byte order": (OTHER_ORDER, "of another byte order"),
    "old keys": (OLD.replace(OLD_KEYS, b"]q\x00(]](]]e."), "its storages are not those of its"),
    "old count": (OLD.replace(struct.pack("<q", 6) + bytes(4), struct.pack("<q", 7) + bytes(4)),
                  "a storage of 6 elements has 7"),
    "tar": (tar_of(b"storages"), "before torch 0.1.10"),
    "TorchScript": (SCRIPT, "is a TorchScript program"),
    "list": (saved([torch.ones(1)]), "holds a list; a checkpoint is a flat dict of tensors"),
    "tensor": (saved(torch.ones(1)), "holds a tensor; a checkpoint"),
    "nested": (saved({"model": TENSORS}), "holds a dict at 'model'"),
    "number": (saved({"a": torch.ones(1), "step": 3}), "holds a int at 'step'"),
    "number as name": (saved({7: torch.ones(1)}), "holds a tensor at 7"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "holds a sparse tensor (torch._utils._reb"),
    "quantised": (
        zip_of({**MEMBERS, "archive/data.pkl": QUANTISED}),
        "holds a quantised tensor (torch._utils._rebuild_qtensor); only plain dense tensors are",
    ),
    "without memory": (saved({"a": torch.ones(3, device="meta")}), "holds a tensor without memory"),
    "float8": (saved({"a": torch.ones(2).to(torch.float8_e5m2)}), "holds a tensor of float8"),
    "expanded": (saved({"a": torch.ones(1).expand(9)}), "shape (9,) and strides (0,) from element"),
    "name": (saved({"a\n": torch.ones(1)}), r"a tensor of an unreadable name, 'a\n'"),
    "namespace": (saved({"a": argparse.Namespace()}), "plain tensors (argparse.Namespace)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / NAME
    path.write_bytes(content)
    assert message in message_of(path)


@in_every_container
def test_hidden_code_is_refused_and_never_runs(container: str, tmp_path: Path) -> None:
    """That the payload is live is shown in test_unpickle."""
    path, marker = tmp_path / NAME, tmp_path / "marker"
    path.write_bytes(saved({"a": torch.ones(1), "b": Payload(marker)}, **CONTAINERS[container]))
    for load in (load_tensors, load_object):
        assert "holds more than plain tensors (posix.system)" in message_of(path, load)
    assert not marker.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    torch.save({"model": nn.Linear(2, 2)}, path)
    assert "holds more than plain tensors (torch.nn.modules.linear.Linear)" in message_of(path)


def test_a_missing_file_and_a_dead_link_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.pth").symlink_to(tmp_path / NAME)
    for path in (tmp_path / NAME, tmp_path / "link.pth"):
        assert "No such file" in message_of(path)


def test_a_pipe_or_folder_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    for path in (tmp_path / NAME, tmp_path):
        assert "is not a regular file" in message_of(path)


@in_every_container
def test_tensors_of_every_kind_arrive(container: str, tmp_path: Path) -> None:
    matrix = torch.arange(24.0).view(4, 6)
    marked = torch.ones(3)
    marked.note = "attributes change how torch writes it"  # type: ignore[attr-defined]
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = 1  # type: ignore[attr-defined]
    floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    integer = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
    state = nn.Linear(2, 3).state_dict()  # an OrderedDict with attributes
    state |= {str(dtype): torch.ones(5, dtype=dtype) for dtype in (*floating, *integer)}
    state |= {"plain": nn.Parameter(torch.ones(2)), "parameter": parameter, "marked": marked}
    state |= {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 3)}
    state |= {"whole": matrix, "transposed": matrix.t(), "view": matrix[1:, 2:4]}
    path = tmp_path / NAME
    torch.save(state, path, **CONTAINERS[container])
    tensors = load_tensors(path)
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
    for name in state.keys() - {"transposed", "view", "empty"}:
        assert torch.equal(read(tensors[name]), state[name])
    for name in ("transposed", "view"):
        out = torch.empty(tensors[name].shape)
        tensors[name].read_into(out)
        assert torch.equal(out, state[name])


@in_every_container
def test_shared_storages_stay_shared(container: str, tmp_path: Path) -> None:
    matrix = torch.randn(64, 64)
    path = tmp_path / NAME
    torch.save({"a": matrix, "b": matrix, "row": matrix[5]}, path, **CONTAINERS[container])
    tensors = load_tensors(path)
    ((begin, _),) = tensors["a"].extents()
    assert tensors["b"].extents() == tensors["a"].extents()
    assert tensors["row"].extents() == [(begin + 5 * 256, begin + 6 * 256)]


@in_every_container
def test_objects_of_training_programs(container: str, tmp_path: Path) -> None:
    held = {
        "args": argparse.Namespace(layers=3, dtype=torch.float16, name="x", betas=(0.9, 0.95)),
        "more": types.SimpleNamespace(a=[1, None]),
        "model": {"w": torch.ones(2, 3), "inner": collections.OrderedDict(b=torch.zeros(2))},
        "rng": [np.random.RandomState(0).get_state(), torch.get_rng_state(), np.float32(3)],
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }
    path = tmp_path / NAME
    torch.save(held, path, **CONTAINERS[container])
    found: Any = load_object(path)
    assert found["args"] == {
        "layers": 3, "dtype": Opaque("torch.float16"), "name": "x", "betas": (0.9, 0.95),
    }  # fmt: skip
    assert found["more"] == {"a": [1, None]}
    assert torch.equal(read(found["model"]["w"]), torch.ones(2, 3))
    assert torch.equal(read(found["model"]["inner"]["b"]), torch.zeros(2))
    assert isinstance(found["rng"][0][1], Opaque)
    assert torch.equal(read(found["rng"][1]), torch.get_rng_state())
    assert found["device"] == Opaque("torch.device")
    assert found["size"] == (1, 2)


def test_classes_of_megatron_run_nothing(tmp_path: Path) -> None:
    """Their modules are not even there."""
    content = b"\x80\x02}q\x00U\x04typecmegatron.enums\nModelType\nK\x01\x85R}U\x01xK\x01sbs."
    path = tmp_path / NAME
    path.write_bytes(zip_of({**MEMBERS, "archive/data.pkl": content}))
    assert load_object(path) == {"type": Opaque("megatron.enums.ModelType")}
    assert "plain tensors (megatron.enums.ModelType)" in message_of(path)


def test_storages_inside_opaque_things_are_counted_in_old_files(tmp_path: Path) -> None:
    """Else everything behind them would be read from the wrong place."""
    path = tmp_path / NAME
    held = {"a": torch.ones(3), "args": argparse.Namespace(b=torch.zeros(5)), "c": torch.ones(2)}
    torch.save(held, path, **LEGACY)
    renamed = path.read_bytes().replace(b"cargparse\nNamespace\n", b"cmegatron.x\nScaler\n")
    path.write_bytes(renamed)
    found: Any = load_object(path)
    assert found["args"] == Opaque("megatron.x.Scaler")
    assert torch.equal(read(found["a"]), torch.ones(3))
    assert torch.equal(read(found["c"]), torch.ones(2))


def test_a_stream_inside_a_file(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    stream = saved(tensor)
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(b"before " + stream + b" after")
    file = DataFile(path)
    assert torch.equal(read(load_tensor_at(file, 7, len(stream))), tensor)
    for offset, length in ((7, len(stream) - 1), (6, len(stream)), (7, 10**9), (0, 0), (-1, 5)):
        with pytest.raises(CheckpointError, match=r"__0_0\.distcp is truncated or damaged"):
            load_tensor_at(file, offset, length)
    path.write_bytes(saved(TENSORS))
    with pytest.raises(CheckpointError, match="holds a dict at byte 0 instead of a tensor"):
        load_tensor_at(DataFile(path), 0, path.stat().st_size)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.sampled_from([GOOD, OLD]),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=9),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damage_is_an_error_of_ours_or_goes_unnoticed(
    content: bytes, flips: list[tuple[int, int]], kept: float, tmp_path_factory: Any
) -> None:
    damaged = bytearray(content)
    for position, value in flips:
        damaged[position % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / NAME
    path.write_bytes(damaged[: round(len(damaged) * kept)])
    for load in (load_tensors, load_object):
        try:
            held = load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            continue
        for tensor in held.values() if isinstance(held, dict) else []:
            if isinstance(tensor, FileTensor):
                assert tensor.nbytes <= len(damaged)
                read_anyway = torch.empty(tensor.shape, dtype=tensor.dtype)
                tensor.read_into(read_anyway)


OTHERS = {name: content for name, content in MEMBERS.items() if name != "archive/data.pkl"}
HEAP_TENSOR = b"\x80\x02}X\x01\x00\x00\x00wctorch\nFloatTensor\n]G?\xf0\0\0\0\0\0\0a\x85Rs."
HEAP_STORAGE = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
    b"(ctorch.storage\nTypedStorage\nK\x09\x85RK\x00K\x09\x85K\x01\x85\x89"
    b"ccollections\nOrderedDict\n)RtRs."
)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"archive/data.pkl": HEAP_TENSOR}, "(torch.FloatTensor)"),
        ({"archive/data.pkl": HEAP_STORAGE}, "(torch.storage.TypedStorage)"),
        ({"archive/DATA.PKL": HEAP_TENSOR}, "no data.pkl in it"),
        ({"archive/data.pkl": b"N.", "archive/DATA.PKL": HEAP_TENSOR}, "lists a member twice"),
        ({"archive/data.pkl": b"N.", "other/data.pkl": b"N."}, "no data.pkl in it"),
        ({"archive/data.pkl": b"\x80\x02}"}, "its list of tensors is no pickle"),
        ({"archive/data.pkl": b"\x80\x02\xff."}, "its list of tensors is no pickle"),
    ],
)
def test_what_torch_itself_would_let_pass_is_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / NAME
    path.write_bytes(zip_of({**members, **OTHERS}))
    assert message in message_of(path)


def tensor_pickle(
    *, shape: str = "K\x02K\x03\x86", stride: str = "K\x03K\x01\x86", offset: str = "K\x00",
    key: str = "U\x010", count: str = "K\x06", kind: str = "ctorch\nFloatStorage\n",
) -> bytes:  # fmt: skip
    """A dict of one tensor of 2 x 3 in the first storage of TENSORS, with one thing changed."""
    text = (
        "\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storage"
        f"{kind}{key}U\x03cpu{count}tQ{offset}{shape}{stride}\x89}}tRs."
    )
    return text.encode("latin-1")


GEOMETRIES = {
    "too many rows": (tensor_pickle(shape="K\x03K\x03\x86"), "shape (3, 3) and strides (3, 1)"),
    "too far apart": (tensor_pickle(stride="K\x04K\x01\x86"), "strides (4, 1)"),
    "too late": (tensor_pickle(offset="K\x01"), "from element 1 in a storage of 6 elements"),
    "overlapping": (tensor_pickle(shape="K\x09K\x09\x86", stride="K\x00K\x00\x86"), "(9, 9)"),
    "backwards": (tensor_pickle(stride="J\xff\xff\xff\xffK\x01\x86"), "impossible sizes"),
    "negative": (tensor_pickle(shape="J\xff\xff\xff\xffK\x01\x86"), "impossible sizes"),
    "not a number": (tensor_pickle(shape="K\x02N\x86"), "impossible sizes"),
    "true": (tensor_pickle(offset="\x88"), "impossible sizes"),
    "one stride": (tensor_pickle(stride="K\x01\x85"), "shape (2, 3) and strides (1,)"),
    "65 dims": (
        tensor_pickle(shape="(" + 65 * "K\x01" + "t", stride="(" + 65 * "K\x01" + "t"),
        "a tensor of 65 dims",
    ),
    "larger storage": (tensor_pickle(count="K\x07"), "storage '0' of 28 bytes is 24 bytes"),
    "other dtype": (tensor_pickle(kind="ctorch\nHalfStorage\n"), "of 12 bytes is 24 bytes"),
    "no storage": (tensor_pickle(key="U\x017"), "storage '7' of 24 bytes is missing"),
    "storage elsewhere": (tensor_pickle(key="U\x06../../x"), "is damaged"),
    "number as key": (tensor_pickle(key="K\x00"), "a storage without a name"),
    "no type": (tensor_pickle(kind="U\x01x"), "a storage of no known type"),
}


def test_the_pickle_of_these_tests_is_good(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(zip_of({"archive/data.pkl": tensor_pickle(), **OTHERS}))
    assert torch.equal(read(load_tensors(path)["a"]), TENSORS["a"])


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_a_tensor_must_lie_in_its_storage_and_that_in_the_file(kind: str, tmp_path: Path) -> None:
    pickled, message = GEOMETRIES[kind]
    path = tmp_path / NAME
    path.write_bytes(zip_of({"archive/data.pkl": pickled, **OTHERS}))
    assert message in message_of(path)


NESTED = {
    "deep": b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".",
    "cyclic": b"\x80\x02]q\x00h\x00a.",
    "doubled": b"\x80\x02]" + b"q\x00]h\x00ah\x00a" * 90 + b".",
}


@pytest.mark.parametrize("kind", NESTED)
def test_nesting_that_would_never_end_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(zip_of({"archive/data.pkl": NESTED[kind], **OTHERS}))
    message = message_of(path, load_object)
    assert "nested too deeply" in message or "too large" in message


ORDERED = b"ccollections\nOrderedDict\nq\x020"
PAIRS = b"]q\x01(" + b"K\x01N\x86" * 30_000 + b"e0"
ITEMS = b"}q\x01(" + b"".join(b"M%sN" % struct.pack("<H", n) for n in range(30_000)) + b"u0"
NAMESPACE = b"cargparse\nNamespace\nq\x020"
REPEATED = {
    "dicts of one list": PAIRS + ORDERED + b"](" + b"h\x02h\x01\x85R" * 100_000 + b"e.",
    "namespaces of one state": ITEMS + NAMESPACE + b"](" + b"h\x02)Rh\x01b" * 100_000 + b"e.",
    "sizes of one tuple": (
        b"(" + b"K\x01" * 300_000 + b"tq\x010ctorch\nSize\nq\x020]("
        + b"h\x02h\x01\x85R" * 100_000 + b"e."
    ),
    "storages of one tuple": (
        b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06" + b"N" * 300_000
        + b"tq\x010](" + b"h\x01Q" * 100_000 + b"e."
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPEATED)
def test_what_is_made_again_and_again_is_bounded(kind: str, tmp_path: Path) -> None:
    """A few bytes each time; made as often as the file asks, it would take all memory."""
    path = tmp_path / NAME
    path.write_bytes(zip_of({"archive/data.pkl": b"\x80\x02" + REPEATED[kind], **OTHERS}))
    began = time.monotonic()
    assert "made to do harm" in message_of(path, load_object)
    assert time.monotonic() - began < 60


def test_what_is_shared_is_located_once(tmp_path: Path) -> None:
    path = tmp_path / NAME
    tensor, inner = torch.ones(2), [torch.zeros(2)]
    torch.save({"a": tensor, "b": [tensor] * 3, "c": (inner, inner)}, path)
    found: Any = load_object(path)
    assert found["c"][0] is found["c"][1]
    assert all(torch.equal(read(held), tensor) for held in (found["a"], *found["b"]))


@pytest.mark.parametrize("extra", [b"\1\0\x10\0" + bytes(12), b"\1\0\x0c\0" + bytes(12), b"\1\0\0"])
def test_a_field_that_ends_before_its_64_bit_sizes_is_refused(extra: bytes, tmp_path: Path) -> None:
    """The archive is cut off in the middle of what its directory declares."""
    path = tmp_path / NAME
    entry_at = GOOD.rindex(b"PK\1\2")
    end_at = GOOD.rindex(b"PK\5\6")
    name_length, _ = struct.unpack_from("<2H", GOOD, entry_at + 28)
    entry = bytearray(GOOD[entry_at : entry_at + 46 + name_length])
    entry[20:28] = b"\xff" * 8  # both sizes stand in the extra field
    struct.pack_into("<2H", entry, 30, len(extra), 0)
    directory_at = GOOD.index(b"PK\1\2")
    directory = GOOD[directory_at:entry_at] + bytes(entry) + extra
    end = bytearray(GOOD[end_at:])
    struct.pack_into("<2I", end, 12, len(directory), directory_at)
    path.write_bytes(GOOD[:directory_at] + directory + bytes(end))
    assert "truncated or damaged" in message_of(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory that lead to the same header."""
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
        first, second = archive.getinfo("archive/data/0"), archive.getinfo("archive/data/1")
        second.header_offset = first.header_offset
    assert "truncated or damaged" in message_of(path)


def test_an_archive_of_more_than_4_gib(tmp_path: Path) -> None:
    """Its offsets need the 64-bit fields. The gap is a hole, which takes no space."""
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
        archive.start_dir = 5 * 2**30
        for name, content in OTHERS.items():
            archive.writestr(name, content)
    assert path.stat().st_size > 5 * 2**30
    tensor = load_tensors(path)["a"]
    assert tensor.offset > 5 * 2**30
    assert torch.equal(read(tensor), TENSORS["a"])


def test_a_listing_or_directory_beyond_any_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NAME
    path.write_bytes(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 10)
        assert "truncated or damaged" in message_of(path)
    with monkeypatch.context() as patch:
        patch.setattr("llama.checkpoint.files.torch_container.MAX_BYTES", 10)
        assert "more than the 10 that any checkpoint needs" in message_of(path)
    monkeypatch.setattr(torch_pickle, "MAX_VALUES", 2)
    assert "too large" in message_of(path)


def test_the_demo_model_still_loads() -> None:
    for path in (Path(__file__).parents[2] / "examples/demo_model").glob("*.pth"):
        assert load_tensors(path)
