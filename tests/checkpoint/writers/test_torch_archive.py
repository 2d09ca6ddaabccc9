from __future__ import annotations

import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.writers.output_tensor import CHUNK_BYTES, OutputTensor, Repeated, Rows
from llama.checkpoint.writers.torch_archive import TorchFile
from llama.errors import OutputError


def output(tensor: torch.Tensor) -> OutputTensor:
    return OutputTensor.of("x", [Rows(StoredTensor.of([MemoryTensor(tensor)]))], None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_loads_what_was_put_in(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "odd": torch.randn(3, 5).to(dtype),
        "row": torch.randn(7).to(dtype),
        "chunks": torch.randn(CHUNK_BYTES // (8 * dtype.itemsize) * 2 + 1, 8).to(dtype),
    }
    content = {name: output(tensor) for name, tensor in tensors.items()}
    content["same"] = content["odd"]
    path = tmp_path / "x.pth"
    written: list[int] = []
    for _ in TorchFile("x.pth", content).write(path, written.append):
        pass
    for options in ({"weights_only": True, "mmap": True}, {"weights_only": False}):
        held = torch.load(path, **options)  # type: ignore[arg-type]
        assert list(held) == ["odd", "row", "chunks", "same"]
        for name, tensor in tensors.items():
            assert held[name].dtype == dtype
            assert torch.equal(held[name], tensor)
            assert held[name].data_ptr() % 64 == 0
        assert held["same"].data_ptr() == held["odd"].data_ptr()
    assert sum(written) == sum(tensor.nbytes for tensor in tensors.values())


def test_other_programs_that_read_zip_find_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    content = {"args": Namespace(a=1), "model": {"x": output(torch.randn(9, 11))}}
    for _ in TorchFile("x.pth", content).write(path, lambda _: None):
        pass
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        (name,) = (name for name in archive.namelist() if name.endswith("/data/0"))
        stored = archive.getinfo(name)
        # the checksum stands once more behind the member, for programs that read in one go
        raw = path.read_bytes()
        assert raw.count(stored.CRC.to_bytes(4, "little")) >= 2
    assert torch.load(path, weights_only=False)["args"] == Namespace(a=1)


@pytest.mark.nightly
def test_a_tensor_of_more_than_4_gib(tmp_path: Path) -> None:
    row = torch.arange(2**20, dtype=torch.float32).view(1, -1)
    n_rows = 1030
    large = OutputTensor.of("x", [Repeated(StoredTensor.of([MemoryTensor(row)]), n_rows)], None)
    path = tmp_path / "x.pth"
    for _ in TorchFile("x.pth", {"x": large, "y": output(row)}).write(path, lambda _: None):
        pass
    held = torch.load(path, weights_only=True, mmap=True)
    assert held["x"].shape == (n_rows, 2**20)
    assert torch.equal(held["x"][-1:], row)
    assert torch.equal(held["y"], row)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    path.unlink()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = TorchFile("x.pth", {"x": output(torch.randn(2, 2))})
    with pytest.raises(OSError, match="No such file"):
        next(file.write(tmp_path / "missing" / "x.pth", lambda _: None))
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises((OSError, OutputError)):
        next(file.write(tmp_path / "full", lambda _: None))
