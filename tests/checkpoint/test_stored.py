"""Slices of a tensor that lies in parts: every cut of every slice equals torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.part import MemoryTensor
from llama.checkpoint.files.stored import StoredTensor

FULL = torch.arange(6 * 10, dtype=torch.float32).view(6, 10)
CUTS = st.sampled_from(
    [(None, [1]), (0, [6]), (0, [1, 5]), (0, [2, 2, 2]), (1, [3, 7]), (1, [1] * 10)]
)


def stored_in(dim: int | None, sizes: list[int]) -> StoredTensor:
    parts = [FULL] if dim is None else list(FULL.split(sizes, dim))
    return StoredTensor.of([MemoryTensor(part) for part in parts], dim=dim)


@given(cut=CUTS, dim=st.sampled_from([0, 1]), data=st.data())
def test_every_slice_of_every_cut(
    cut: tuple[int | None, list[int]], dim: int, data: st.DataObject
) -> None:
    stored, wanted = stored_in(*cut), FULL
    assert stored.shape == (6, 10) and stored.nbytes == 240
    for cut_dim in (dim, 1 - dim):
        start = data.draw(st.integers(0, FULL.shape[cut_dim]))
        size = data.draw(st.integers(0, FULL.shape[cut_dim] - start))
        stored = stored.narrow(cut_dim, start, size)
        wanted = wanted.narrow(cut_dim, start, size)

    out = torch.full_like(wanted, -1.0)
    stored.read_into(out)

    assert stored.shape == tuple(wanted.shape)
    assert torch.equal(out, wanted)


def test_parts_in_files_are_read_where_they_lie(tmp_path: Path) -> None:
    parts = []
    for number, part in enumerate(FULL.split([2, 4])):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(part.contiguous().numpy().tobytes())
        parts.append(FileTensor.of(DataFile(path), 0, dtype=FULL.dtype, shape=part.shape))
    stored = StoredTensor.of(parts, dim=0)

    rows = stored.narrow(0, 1, 3)
    bytes_read = rows.read_into(out := torch.empty(3, 10))

    assert torch.equal(out, FULL[1:4])
    assert stored.paths == (tmp_path / "0.bin", tmp_path / "1.bin")
    assert stored.narrow(0, 3, 2).paths == (tmp_path / "1.bin",)
    assert rows.extents() == [(tmp_path / "0.bin", 40, 80), (tmp_path / "1.bin", 0, 80)]
    assert bytes_read == 120


def test_it_writes_into_views_and_converts() -> None:
    target = torch.zeros(6, 8, dtype=torch.bfloat16)
    stored_in(1, [3, 7]).narrow(1, 1, 4).read_into(target.narrow(1, 2, 4))
    assert torch.equal(target[:, 2:6].float(), FULL[:, 1:5])
    assert not target[:, :2].any() and not target[:, 6:].any()


@pytest.mark.parametrize("shape", [(6, 9), (5, 10), (60,), (10, 6)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        stored_in(0, [2, 4]).read_into(torch.empty(shape))


@pytest.mark.parametrize(("dim", "start", "length"), [(0, 4, 3), (0, -1, 2), (1, 11, 0)])
def test_a_slice_beyond_the_tensor_is_refused(dim: int, start: int, length: int) -> None:
    with pytest.raises(ValueError, match="are not all in dim"):
        stored_in(0, [2, 4]).narrow(dim, start, length)
