"""One .pth: what hides code, what a broken download leaves, what is no flat dict of tensors."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from llama.checkpoint.pickle_scan import foreign_globals
from llama.checkpoint.torch_file import load_tensors
from llama.errors import CheckpointError, LlamaError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
NAME = "consolidated.00.pth"


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


def message_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


GOOD = saved(TENSORS)
MEMBERS = members_of(GOOD)
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
    "overdeclared": (overdeclared(GOOD), "bytes of content in a file of"),
    "listed twice": (GOOD.replace(b"archive/data/1", b"archive/data/0"), "lists a member twice"),
    "byte order": (zip_of({**MEMBERS, "archive/byteorder": b"big"}), "of another byte order"),
    "old format": (saved(TENSORS, _use_new_zipfile_serialization=False), "before torch 1.6"),
    "bare pickle": (pickle.dumps({"a": 1}), "a bare pickle"),
    "tar": (tar_of(b"storages"), "before torch 1.6"),
    "TorchScript": (SCRIPT, "damaged and cannot be read"),
    "list": (saved([torch.ones(1)]), "holds a list; a checkpoint is a flat dict of tensors"),
    "tensor": (saved(torch.ones(1)), "holds a Tensor; a checkpoint"),
    "nested": (saved({"model": TENSORS}), "holds a dict at 'model'"),
    "number": (saved({"a": torch.ones(1), "step": 3}), "holds a int at 'step'"),
    "number as name": (saved({7: torch.ones(1)}), "holds a Tensor at '7'"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "holds more than plain tensors"),
    "without memory": (saved({"a": torch.ones(3, device="meta")}), "holds more than plain tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / NAME
    path.write_bytes(content)
    assert message in message_of(path)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_hidden_code_is_refused_and_never_runs(options: dict[str, Any], tmp_path: Path) -> None:
    path, marker = tmp_path / NAME, tmp_path / "marker"
    path.write_bytes(saved({"a": torch.ones(1), "b": Payload(marker)}, **options))
    message = message_of(path)
    assert "can hide code" in message or "holds more than plain tensors (posix.system)" in message
    assert "weights_only" not in message
    assert not marker.exists()


def test_the_payload_of_these_tests_is_live(tmp_path: Path) -> None:
    """Else the absent marker above would prove nothing."""
    code = f"import pickle; pickle.loads({pickle.dumps(Payload(tmp_path / 'marker'))!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert (tmp_path / "marker").exists()


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


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13.0", "unknown"])
def test_an_old_torch_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(TENSORS, tmp_path / NAME)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(CheckpointError, match=r"install torch >= 2\.10"):
        load_tensors(tmp_path / NAME)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_good_files_are_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    torch.save({**TENSORS, "view of a": TENSORS["a"][1:]}, path)
    tensors = load_tensors(path)
    assert list(tensors) == ["a", "b", "view of a"]
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors["view of a"], TENSORS["a"][1:])
    assert str(path) in Path("/proc/self/maps").read_text()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1),
    length=st.integers(1, len(GOOD)) | st.just(len(GOOD)),
)
def test_damage_is_an_error_of_ours_or_goes_unnoticed(
    flips: list[tuple[int, int]], length: int, tmp_path_factory: Any
) -> None:
    content = bytearray(GOOD)
    for position, value in flips:
        content[position] = value
    path = tmp_path_factory.getbasetemp() / NAME
    path.write_bytes(content[:length])
    try:
        tensors = load_tensors(path)
    except LlamaError as error:
        assert str(path) in str(error)
    else:
        assert all(tensor.isfinite().shape == tensor.shape for tensor in tensors.values())


def test_a_tensor_that_lies_outside_the_file_is_refused(tmp_path: Path) -> None:
    """weights_only lets a pickle call torch.FloatTensor; pages of the heap are not ours to drop."""
    good, crafted = tmp_path / "good.pth", tmp_path / "crafted.pth"
    torch.save({"w": torch.ones(3)}, good)
    pickled = b"\x80\x02}q\x00X\x01\x00\x00\x00wctorch\nFloatTensor\n]G?\xf0\0\0\0\0\0\0a\x85Rs."
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(crafted, "w") as target:
        for member in source.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            target.writestr(member, pickled if is_pickle else source.read(member))
    assert torch.load(crafted, weights_only=True)["w"].tolist() == [1.0]  # torch itself takes it
    with pytest.raises(
        CheckpointError, match=r"crafted\.pth holds more than plain tensors \(torch.Float"
    ):
        load_tensors(crafted)


def test_names_computed_by_the_pickle_are_refused() -> None:
    assert list(foreign_globals(pickle.dumps(torch.Size, protocol=4)))
    assert not list(foreign_globals(pickle.dumps({"a": [1, 2.0]}, protocol=2)))


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
        ({"archive/DATA.PKL": HEAP_TENSOR, "archive/xdata.pkl": b"N."}, "(torch.FloatTensor)"),
        ({"archive/data.pkl": b"N.", "archive/DATA.PKL": HEAP_TENSOR}, "lists a member twice"),
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
    assert "weights_only" not in message_of(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("pickled", [HEAP_TENSOR, HEAP_STORAGE])
def test_memory_outside_the_file_is_refused_even_if_its_pickle_passes(
    pickled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama.checkpoint.torch_file.foreign_globals", lambda _: iter(()))
    path = tmp_path / NAME
    path.write_bytes(zip_of({"archive/data.pkl": pickled, **OTHERS}))
    assert "w does not lie in the file" in message_of(path)


def test_every_floating_dtype_and_parameters_and_state_dicts_still_load(tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    state = nn.Linear(2, 3).state_dict()  # an OrderedDict with attributes
    state |= {str(dtype): torch.ones(5, dtype=dtype) for dtype in dtypes}
    state |= {"parameter": nn.Parameter(torch.ones(2)), "empty": torch.ones(0)}
    torch.save(state, tmp_path / NAME)
    tensors = load_tensors(tmp_path / NAME)
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_the_demo_model_still_loads() -> None:
    for path in (Path(__file__).parents[2] / "examples/demo_model").glob("*.pth"):
        assert load_tensors(path)
