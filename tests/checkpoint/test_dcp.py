"""Folders of torch.distributed.checkpoint, written by itself: whole tensors come out."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama.checkpoint import open_checkpoint
from llama.checkpoint.formats.dcp_metadata import read_metadata
from llama.checkpoint.reader import CheckpointReader
from llama.config import ModelConfig
from llama.errors import CheckpointError
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.dcp_files import save, save_grid, write_dcp
from tests.helpers.hf_files import hf_weights
from tests.helpers.ranks import run_ranks

CONFIG = tiny_config(vocab_size=65, n_layers=2)
WEIGHTS = random_model(CONFIG)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote; each test changes a copy."""
    return write_dcp(tmp_path_factory.mktemp("dcp") / "by_two", CONFIG, WEIGHTS, n_ranks=2)


def read(reader: CheckpointReader, name: str) -> Tensor:
    stored = reader.tensors[name]
    out = torch.empty(stored.shape, dtype=stored.dtype)
    reader.read_into(out, name)
    return out


def message_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, format="dcp")
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edited(folder: Path, change: Callable[[Any], None]) -> Path:
    """The folder with its `.metadata` changed, as torch reads and writes it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return folder


@pytest.mark.parametrize(
    ("n_ranks", "dtype"), [(1, torch.float32), (1, torch.bfloat16), (3, torch.bfloat16)]
)
def test_metas_names_of_any_number_of_ranks(
    n_ranks: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    reader = open_checkpoint(write_dcp(tmp_path, CONFIG, WEIGHTS, n_ranks=n_ranks, dtype=dtype))
    assert reader.format == "dcp"
    assert reader.config == CONFIG
    assert list(reader.tensors) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        assert torch.equal(read(reader, name), weight.to(dtype)), name
    assert len(reader.tensors["tok_embeddings.weight"].paths) == n_ranks
    assert reader.ignored == {}
    out = torch.empty(7, 32, dtype=dtype)
    reader.read_into(out, "tok_embeddings.weight", dim=0, start=30)
    assert torch.equal(out, WEIGHTS["tok_embeddings.weight"][30:37].to(dtype))
    reader.close()


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_names_of_hugging_face(n_ranks: int, tmp_path: Path) -> None:
    config = replace(CONFIG, n_kv_heads=2, max_positions=128)
    weights = random_model(config)
    reader = open_checkpoint(write_dcp(tmp_path, config, weights, names="hf", n_ranks=n_ranks))
    assert reader.config.rope_style == "half"
    stored = hf_weights(config, weights, is_half=False)
    pairs = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "layers.1.attention.wq.weight": "model.layers.1.self_attn.q_proj.weight",
        "layers.0.feed_forward.w2.weight": "model.layers.0.mlp.down_proj.weight",
    }
    for name, theirs in pairs.items():
        assert torch.equal(read(reader, name), stored[theirs])
    assert set(reader.tensors) == set(weights)


@pytest.mark.parametrize("names", ["meta", "hf"])
@pytest.mark.parametrize("prefix", ["model.", "module.", "app.model."])
def test_a_prefix_is_left_out_and_the_rest_is_named(
    prefix: str, names: Any, tmp_path: Path
) -> None:
    beside = {
        "optim": {"state": {"tok_embeddings.weight": {"exp_avg": torch.ones(65, 32)}}},
        "step": 7,
        "rng": torch.get_rng_state(),
    }
    write_dcp(tmp_path, CONFIG, WEIGHTS, names=names, prefix=prefix, beside=beside)
    reader = open_checkpoint(tmp_path)
    assert set(reader.tensors) == set(WEIGHTS)
    assert torch.equal(read(reader, "norm.weight"), WEIGHTS["norm.weight"])
    assert reader.ignored["step"].startswith("no tensor")
    assert f"begin with {prefix!r}" in reader.ignored["rng"]
    assert f"begin with {prefix!r}" in reader.ignored["optim.state.tok_embeddings.weight.exp_avg"]


def test_a_state_dict_nested_under_a_key(tmp_path: Path) -> None:
    write_dcp(tmp_path, CONFIG, WEIGHTS)
    params = (tmp_path / "params.json").read_text()
    save({"model": WEIGHTS, "epoch": 3}, tmp_path)
    (tmp_path / "params.json").write_text(params)
    reader = open_checkpoint(tmp_path)
    assert torch.equal(read(reader, "output.weight"), WEIGHTS["output.weight"])


@pytest.mark.parametrize(("names", "file"), [("meta", "params.json"), ("hf", "config.json")])
def test_the_configuration_must_lie_beside(names: Any, file: str, tmp_path: Path) -> None:
    write_dcp(tmp_path, CONFIG, WEIGHTS, names=names)
    (tmp_path / file).unlink()
    assert f"lacks {file}: torch.distributed.checkpoint keeps no architecture" in (
        message_of(tmp_path)
    )


def test_a_configuration_of_another_model(tmp_path: Path) -> None:
    write_dcp(tmp_path, replace(CONFIG, n_layers=3), WEIGHTS)
    assert "lacks 9 of the 30 tensors of its model: layers.2." in message_of(tmp_path)
    write_dcp(tmp_path, CONFIG, WEIGHTS)
    text = (tmp_path / "params.json").read_text()
    (tmp_path / "params.json").write_text(text.replace('"vocab_size": -1', '"vocab_size": 64'))
    message = message_of(tmp_path)
    assert "gives vocab_size 64, but the tensors make a vocabulary of 65" in message


def test_no_embedding_or_two(tmp_path: Path) -> None:
    save({"a": torch.ones(2)}, tmp_path)
    assert "describes 0 token embeddings instead of one" in message_of(tmp_path)
    save({"model": WEIGHTS, "average": WEIGHTS}, tmp_path)
    assert "describes 2 token embeddings instead of one" in message_of(tmp_path)


@pytest.mark.nightly
def test_a_grid_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run_ranks(save_grid, 4, WEIGHTS["tok_embeddings.weight"], str(tmp_path))
    message = message_of(tmp_path)
    assert "tok_embeddings.weight is cut into a grid, along dims 0 and 1" in message
    assert "save it again with one dim sharded" in message


NAME = "layers.0.attention.wq.weight"


def _gap(metadata: Any) -> None:
    del metadata.state_dict_metadata[NAME].chunks[0]


def _too_few(metadata: Any) -> None:
    del metadata.state_dict_metadata[NAME].chunks[1]


def _larger(metadata: Any) -> None:
    metadata.state_dict_metadata[NAME].size = torch.Size([64, 32])


def _no_place(metadata: Any) -> None:
    for key in [key for key in metadata.storage_data if key.fqn == NAME]:
        del metadata.storage_data[key]


def _elsewhere(metadata: Any) -> None:
    for key, place in metadata.storage_data.items():
        if key.fqn == NAME:
            place.relative_path = f"../{place.relative_path}"


def _beyond(metadata: Any) -> None:
    for key, place in metadata.storage_data.items():
        if key.fqn == NAME:
            place.length = 10**12


def _other_block(metadata: Any) -> None:
    places = {key.fqn: place for key, place in metadata.storage_data.items()}
    places[NAME].offset = places["norm.weight"].offset
    places[NAME].length = places["norm.weight"].length


def _compressed(metadata: Any) -> None:
    for place in metadata.storage_data.values():
        place.transform_descriptors = ["zstd"]


FAULTS = {
    _gap: "its blocks leave gaps or overlap at (16, 0)",
    _too_few: "has shape (32, 32), but its blocks end at 16",
    _larger: "has shape (64, 32), but its blocks end at 32",
    _no_place: "damaged or of an unknown version of torch.distributed.checkpoint",
    _elsewhere: "the checkpoint names the file '../",
    _beyond: "is truncated or damaged: a tensor should be in bytes",
    _other_block: "but .metadata says (",
    _compressed: "damaged or of an unknown version",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_metadata_must_not_say(
    fault: Callable[[Any], None], by_two: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "copy"))
    assert FAULTS[fault] in message_of(edited(folder, fault))


class Payload:
    """Runs a shell command when it is unpickled without protection."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_code_in_the_metadata_is_refused_and_never_runs(tmp_path: Path) -> None:
    write_dcp(tmp_path, CONFIG, WEIGHTS)
    marker = tmp_path / "marker"
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    metadata.planner_data = Payload(marker)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    message = message_of(tmp_path)
    assert "(posix.system) and is refused" in message
    assert "weights_only" not in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a Git LFS pointer"),
        (b"junk", "is no pickle"),
        (pickle.dumps({"a": 1}), "of an unknown version"),
    ],
)
def test_a_metadata_file_that_is_none(content: bytes, expected: str, tmp_path: Path) -> None:
    write_dcp(tmp_path, CONFIG, WEIGHTS)
    (tmp_path / ".metadata").write_bytes(content)
    assert expected in message_of(tmp_path)


def test_missing_and_truncated_files_are_named(by_two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "copy"))
    path = folder / "__1_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"{path} is truncated or damaged" in message_of(folder)
    assert f"{len(content) // 2:,} bytes are there" in message_of(folder)
    path.unlink()
    assert f"cannot open {path}" in message_of(folder)


SMALL = ModelConfig(dim=4, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=4, ffn_dim=4, vocab_size=3)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damaged_metadata_is_an_error_of_ours_or_goes_unnoticed(
    flips: list[tuple[int, int]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    path = folder / ".metadata"
    if not folder.exists():
        write_dcp(folder, SMALL, random_model(SMALL))
        path.with_name("whole").write_bytes(path.read_bytes())
    content = bytearray(path.with_name("whole").read_bytes())
    for position, value in flips:
        content[position % len(content)] = value
    path.write_bytes(content)
    try:
        open_checkpoint(folder, format="dcp")
    except CheckpointError as error:
        assert str(folder) in str(error)


def test_what_is_no_tensor_is_listed(tmp_path: Path) -> None:
    save({"w": torch.ones(2, 3), "step": 3, "names": ["a"]}, tmp_path)
    metadata = read_metadata(tmp_path)
    assert metadata.shapes == {"w": (2, 3)}
    assert [chunk.sizes for chunk in metadata.chunks["w"]] == [(2, 3)]
    assert set(metadata.others) == {"step", "names"}
