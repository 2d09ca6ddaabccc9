"""The fingerprint: equal for equal content wherever it lies, another one for any change it sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.files.file_tensor import FileTensor
from llama.checkpoint.files.stored import StoredTensor
from llama.checkpoint.fingerprint import MOST_TENSORS, SAMPLE_BYTES, fingerprint, sampled_names
from llama.checkpoint.reader import CheckpointReader, make_reader
from llama.config import ModelConfig
from tests.helpers.checkpoints import Weights, random_model, tiny_config

CONFIG = tiny_config()


def stored(path: Path, weight: torch.Tensor, *, n_files: int, transposed: bool) -> StoredTensor:
    """`weight` in `n_files` raw files (rows dealt out), each transposed in its file if wanted."""
    parts = []
    for number, part in enumerate(weight.chunk(n_files)):
        content = part.t() if transposed and part.dim() == 2 else part
        file = path.with_name(f"{path.name}.{number}")
        file.write_bytes(content.contiguous().view(torch.uint8).numpy().tobytes())
        tensor = FileTensor.of(DataFile(file), 0, dtype=content.dtype, shape=content.shape)
        is_turned = transposed and part.dim() == 2
        parts.append(tensor.view(lambda g: g.t()) if is_turned else tensor)
    return StoredTensor.of(parts, dim=0)


def raw_reader(
    folder: Path,
    weights: Weights,
    *,
    config: ModelConfig = CONFIG,
    n_files: int = 1,
    transposed: bool = False,
) -> CheckpointReader:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: stored(folder / name, weight, n_files=n_files, transposed=transposed)
        for name, weight in weights.items()
    }
    return make_reader("raw", folder, config, tensors, ignored={})


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_model(CONFIG)


def test_place_and_number_of_files_make_no_difference(tmp_path: Path, weights: Weights) -> None:
    prints = {
        fingerprint(raw_reader(tmp_path / "one", weights)),
        fingerprint(raw_reader(tmp_path / "one", weights)),
        fingerprint(raw_reader(tmp_path / "other" / "deep", weights)),
        fingerprint(raw_reader(tmp_path / "two", weights, n_files=2)),
        fingerprint(raw_reader(tmp_path / "four", weights, n_files=4)),
    }
    assert len(prints) == 1
    (found,) = prints
    assert len(found) == 64


@pytest.mark.parametrize("name", ["tok_embeddings.weight", "layers.1.attention.wo.weight"])
def test_one_sampled_byte_makes_another(tmp_path: Path, weights: Weights, name: str) -> None:
    before = fingerprint(raw_reader(tmp_path, weights))
    path = tmp_path / f"{name}.0"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert fingerprint(raw_reader_again(tmp_path, weights)) != before


def raw_reader_again(folder: Path, weights: Weights) -> CheckpointReader:
    """A reader over the raw files that lie in `folder` already."""
    tensors = {
        name: StoredTensor.of(
            [
                FileTensor.of(
                    DataFile(folder / f"{name}.0"), 0, dtype=weight.dtype, shape=weight.shape
                )
            ]
        )
        for name, weight in weights.items()
    }
    return make_reader("raw", folder, CONFIG, tensors, ignored={})


def test_dtype_and_format_count_and_the_configuration_does_not(
    tmp_path: Path, weights: Weights
) -> None:
    plain = raw_reader(tmp_path / "plain", weights)
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    others = [
        replace(plain, format="cooked"),
        raw_reader(tmp_path / "half", half),
    ]
    assert len({fingerprint(reader) for reader in [plain, *others]}) == 3
    reconfigured = replace(plain, config=replace(CONFIG, rope_theta=5e5))
    assert fingerprint(reconfigured) == fingerprint(plain)


def touched_bytes(reader: CheckpointReader, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that a fingerprint reads from files."""
    read = 0
    real = DataFile.read_into

    def counting(self: DataFile, buffer: memoryview, offset: int) -> None:
        nonlocal read
        read += len(buffer)
        real(self, buffer, offset)

    monkeypatch.setattr(DataFile, "read_into", counting)
    fingerprint(reader)
    return read


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n_files", [1, 2])
def test_it_reads_samples_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool, n_files: int
) -> None:
    config = tiny_config(n_layers=12, dim=256, head_dim=32, ffn_dim=512, vocab_size=600)
    weights = random_model(config)
    assert sum(weight.nbytes for weight in weights.values()) > 10 * MOST_TENSORS * SAMPLE_BYTES
    reader = raw_reader(tmp_path, weights, config=config, n_files=n_files, transposed=transposed)
    read = touched_bytes(reader, monkeypatch)
    assert MOST_TENSORS * SAMPLE_BYTES / 4 < read <= MOST_TENSORS * SAMPLE_BYTES * n_files


def test_samples_are_spread_over_all_tensors(tmp_path: Path) -> None:
    config = tiny_config(n_layers=20)
    reader = raw_reader(tmp_path, random_model(config), config=config)
    names, sampled = sorted(reader.tensors), sampled_names(reader)
    assert len(sampled) == len(set(sampled)) == MOST_TENSORS < len(names)
    assert (sampled[0], sampled[-1]) == (names[0], names[-1])
    places = [names.index(name) for name in sampled]
    assert max(after - before for before, after in pairwise(places)) <= 3


def test_few_tensors_are_all_sampled(tmp_path: Path) -> None:
    config = tiny_config(n_layers=1)
    reader = raw_reader(tmp_path, random_model(config), config=config)
    assert sampled_names(reader) == sorted(reader.tensors)
