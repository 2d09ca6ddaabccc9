"""Random weights are a checkpoint like any other, and the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from llama.bench import weights
from llama.bench.shapes import Shape, find_shape
from llama.bench.weights import MODEL_FILE, check_room, write_weights
from llama.checkpoint import open_checkpoint
from llama.errors import OutputError

TINY = find_shape("tiny")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_is_read_as_the_shape(tmp_path: Path, dtype: str) -> None:
    folder = write_weights(replace(TINY, dtype=dtype), tmp_path)
    reader = open_checkpoint(folder)
    assert reader.dtype == getattr(torch, dtype)
    found = reader.config
    reader.close()
    assert found == replace(TINY.config, max_positions=found.max_positions)


def test_it_is_written_once_and_always_alike(tmp_path: Path) -> None:
    first = write_weights(TINY, tmp_path / "one")
    written = (first / MODEL_FILE).stat().st_mtime_ns
    assert write_weights(TINY, tmp_path / "one") == first
    assert (first / MODEL_FILE).stat().st_mtime_ns == written
    other = write_weights(TINY, tmp_path / "other")
    assert (first / MODEL_FILE).read_bytes() == (other / MODEL_FILE).read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == [first.name]


def test_what_was_not_finished_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(shape: Shape) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "random_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_weights(TINY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"take 1000000\.0 GB and .* GB free; .*--keep"):
        check_room(tmp_path, 10**15, what="big weights")
