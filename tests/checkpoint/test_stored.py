"""Slices of a tensor that lies in parts: every cut of every slice equals torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama.checkpoint.stored import StoredTensor

FULL = torch.arange(6 * 10, dtype=torch.float32).view(6, 10)
CUTS = st.sampled_from(
    [(None, [1]), (0, [6]), (0, [1, 5]), (0, [2, 2, 2]), (1, [3, 7]), (1, [1] * 10)]
)


def stored_in(dim: int | None, sizes: list[int]) -> StoredTensor:
    parts = [FULL] if dim is None else list(FULL.split(sizes, dim))
    return StoredTensor.of(parts, [f"{number}.pth" for number in range(len(parts))], dim=dim)


@given(cut=CUTS, dim=st.sampled_from([None, 0, 1]), data=st.data())
def test_every_slice_of_every_cut(
    cut: tuple[int | None, list[int]], dim: int | None, data: st.DataObject
) -> None:
    stored = stored_in(*cut)
    assert stored.info.shape == (6, 10)
    wanted, start = FULL, 0
    if dim is not None:
        start = data.draw(st.integers(0, FULL.shape[dim]))
        size = data.draw(st.integers(0, FULL.shape[dim] - start))
        wanted = FULL.narrow(dim, start, size)
    out = torch.full_like(wanted, -1.0)
    assert stored.read_into(out, dim=dim, start=start) == wanted.numel() * 4
    assert torch.equal(out, wanted)


def test_it_writes_into_views_and_converts() -> None:
    target = torch.zeros(6, 8, dtype=torch.bfloat16)
    bytes_read = stored_in(1, [3, 7]).read_into(target.narrow(1, 2, 4), dim=1, start=1)
    assert bytes_read == 6 * 4 * 4  # counted as they lie in the file
    assert torch.equal(target[:, 2:6].float(), FULL[:, 1:5])
    assert not target[:, :2].any() and not target[:, 6:].any()


@pytest.mark.parametrize(
    ("shape", "dim", "start"),
    [((6, 9), None, 0), ((3, 9), 0, 0), ((3, 10), 0, 4), ((3, 10), 0, -1), ((60,), None, 0)],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], dim: int | None, start: int) -> None:
    with pytest.raises(ValueError, match="is no slice of"):
        stored_in(0, [2, 4]).read_into(torch.empty(shape), dim=dim, start=start)
