"""FileTensor: whatever view of a storage is asked for, reading gives torch's own answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama.checkpoint.files import file_tensor
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.errors import CheckpointError

BEFORE = 24
"""Bytes in the file before the tensor: elements of eight bytes do not begin at their own multiple
of the page or of the staging buffer."""


def on_disk(path: Path, tensor: Tensor) -> FileTensor:
    """`tensor`, contiguous, in a file of its own with bytes before and after it."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(b"x" * BEFORE + content + b"y" * 40)
    return FileTensor.of(DataFile(path), BEFORE, dtype=tensor.dtype, shape=tensor.shape)


@pytest.fixture
def matrix() -> Tensor:
    return torch.randn(24, 36, generator=torch.Generator().manual_seed(1))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda x: x,
    "rows": lambda x: x.narrow(0, 5, 7),
    "columns": lambda x: x.narrow(1, 30, 6),
    "transposed": lambda x: x.t(),
    "columns of the transposed": lambda x: x.t().narrow(1, 3, 5),
    "one row": lambda x: x[3],
    "one element": lambda x: x[3, 4],
    "every third row": lambda x: x.unflatten(0, (8, 3))[:, 1],
    "three axes": lambda x: x.unflatten(0, (4, 6)).permute(1, 2, 0),
    "nothing": lambda x: x.narrow(0, 4, 0),
    "repeated": lambda x: x[:1].expand(5, 36),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_reads_what_torch_shows(
    tmp_path: Path, matrix: Tensor, view: str, dtype: torch.dtype
) -> None:
    stored = on_disk(tmp_path / "f", matrix.to(dtype)).view(VIEWS[view])
    expected = VIEWS[view](matrix.to(dtype))

    for out_dtype in (dtype, torch.float16):
        out = torch.full(expected.shape, 7.0, dtype=out_dtype)
        stored.read_into(out)
        assert torch.equal(out, expected.to(out_dtype))
    assert stored.shape == tuple(expected.shape)
    assert stored.nbytes == expected.numel() * dtype.itemsize


@pytest.mark.parametrize("view", VIEWS)
def test_small_requests_give_the_same(
    tmp_path: Path, matrix: Tensor, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tensor, "STAGING_BYTES", 100)
    monkeypatch.setattr(file_tensor, "MAX_GAP_BYTES", 16)
    stored = on_disk(tmp_path / "f", matrix).view(VIEWS[view])
    out = torch.empty(stored.shape, dtype=torch.float64)

    bytes_read = stored.read_into(out)

    assert torch.equal(out, VIEWS[view](matrix).double())
    # ... and what is read is what was announced; a row that is repeated is announced once
    announced = sum(end - begin for begin, end in stored.extents())
    assert bytes_read == announced or view == "repeated"


def test_a_target_that_is_not_contiguous_is_filled_in_place(tmp_path: Path, matrix: Tensor) -> None:
    stored = on_disk(tmp_path / "f", matrix).view(lambda x: x.narrow(0, 2, 10))
    parameter = torch.zeros(10, 50)

    stored.read_into(parameter.narrow(1, 7, 36))

    assert torch.equal(parameter[:, 7:43], matrix[2:12])
    assert not parameter[:, :7].any() and not parameter[:, 43:].any()


def test_rows_take_their_own_bytes_and_columns_far_apart_too(tmp_path: Path) -> None:
    wide = on_disk(tmp_path / "f", torch.zeros(4, 100_000))  # rows of 400 kB

    rows = wide.view(lambda x: x.narrow(0, 1, 2))
    columns = wide.view(lambda x: x.narrow(1, 0, 1000))

    assert rows.extents() == [(BEFORE + 400_000, BEFORE + 1_200_000)]
    assert [end - begin for begin, end in columns.extents()] == [4000] * 4
    assert columns.read_into(torch.empty(4, 1000)) == 16_000


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_view_of_any_shape(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 6), min_size=0, max_size=4))
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    path = tmp_path / "f"
    stored = on_disk(path, tensor)
    for _ in range(data.draw(st.integers(0, 3))):
        if not shape:
            break
        dim = data.draw(st.integers(0, tensor.dim() - 1))
        start = data.draw(st.integers(0, tensor.shape[dim]))
        size = data.draw(st.integers(0, tensor.shape[dim] - start))
        order = data.draw(st.permutations(range(tensor.dim())))
        tensor = tensor.narrow(dim, start, size).permute(order)
        stored = stored.view(
            lambda x, d=dim, f=start, n=size, o=order: x.narrow(d, f, n).permute(o)  # type: ignore[misc]
        )

    out = torch.empty(tensor.shape)
    stored.read_into(out)

    assert torch.equal(out, tensor)


@pytest.mark.parametrize(
    "declared",
    [
        {"shape": (25, 36)},
        {"shape": (24, 36), "storage_offset": 11},
        {"shape": (2, 2), "stride": (900, 1)},
        {"shape": (24, 36), "stride": (36, -1)},
        {"shape": (2**40, 2**40)},
        {"shape": (2**40, 2**40, 0)},
        {"shape": (2**40,), "stride": (0,)},
        {"shape": (24, 36), "stride": (36,)},
    ],
)
def test_a_tensor_that_the_file_does_not_hold_is_refused(
    tmp_path: Path, matrix: Tensor, declared: dict[str, tuple[int, ...]]
) -> None:
    on_disk(tmp_path / "f", matrix)
    with pytest.raises(CheckpointError, match=r"f.* w "):
        FileTensor.of(DataFile(tmp_path / "f"), BEFORE, dtype=torch.float32, name="w", **declared)  # type: ignore[arg-type]


HUGE = st.integers(0, 4) | st.sampled_from([0, 1, 2**31, 2**40, 2**61, 2**62, 2**63])


@settings(
    deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dims=st.lists(st.tuples(HUGE, HUGE), max_size=4),
    is_strided=st.booleans(),
    storage_offset=HUGE,
)
def test_any_declared_sizes_are_refused_or_read(
    tmp_path: Path, dims: list[tuple[int, int]], is_strided: bool, storage_offset: int
) -> None:
    (tmp_path / "f").write_bytes(bytes(200))
    try:
        stored = FileTensor.of(
            DataFile(tmp_path / "f"), 8, dtype=torch.float32, shape=[size for size, _ in dims],
            stride=[step for _, step in dims] if is_strided else None,
            storage_offset=storage_offset,
        )  # fmt: skip
    except CheckpointError:
        return
    assert stored.extents() == [] or stored.extents()[-1][1] <= 200
    out = torch.empty(stored.shape)
    stored.read_into(out)
    assert not out.any()


def test_a_file_that_was_cut_meanwhile_is_named(tmp_path: Path, matrix: Tensor) -> None:
    stored = on_disk(tmp_path / "f", matrix)
    with open(tmp_path / "f", "r+b") as file:
        file.truncate(500)

    with pytest.raises(CheckpointError, match=r"f ends at byte 500, but had 3,520"):
        stored.read_into(torch.empty(24, 36))


def test_closing_gives_the_descriptor_back_and_reading_opens_it_again(
    tmp_path: Path, matrix: Tensor
) -> None:
    stored = on_disk(tmp_path / "f", matrix)
    for _ in range(2):
        stored.read_into(out := torch.empty(24, 36))
        assert torch.equal(out, matrix)
        stored.close()
    assert not any(str(tmp_path) in link for link in _open_files())


def _open_files() -> list[str]:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    return [str(path.resolve()) for path in descriptors.iterdir()]
