"""Which files a folder has, and which of them hold tensors: also through links, also further in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama.checkpoint import open_checkpoint
from llama.checkpoint.folder import NamesInside, checked_files, files_below
from llama.checkpoint.manifest import verify, write_manifest
from llama.errors import CheckpointError
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.hf_files import write_hf
from tests.helpers.megatron_files import write_megatron

CONFIG = tiny_config()


def in_cache(folder: Path, cache: Path) -> Path:
    """The files of `folder` as the Hugging Face cache keeps them: links to blobs."""
    snapshot = cache / "models--somebody--model" / "snapshots" / "0123abc"
    blobs = cache / "models--somebody--model" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        os.rename(path, blobs / f"blob{number}")
        os.symlink(f"../../blobs/blob{number}", snapshot / path.name)
    return snapshot


def test_weights_configuration_and_tokenizer_are_checked(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, CONFIG, random_model(CONFIG))
    beside = ("tokenizer.json", "generation_config.json", "original/tokenizer.model")
    for name in (*beside, "README.md", "original/params.json", "other/tokenizer.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    expected = sorted(["config.json", "model.safetensors", *beside])
    assert checked_files(open_checkpoint(folder)) == expected


def test_arguments_beside_the_weights_are_checked(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path, CONFIG, random_model(CONFIG), tp=2)
    (folder / "iter_0000001").mkdir()
    for iteration in ("iter_0001000", "iter_0000001"):
        (folder / iteration / "megatron_args.json").write_text("{}")
    assert checked_files(open_checkpoint(folder)) == [
        "iter_0001000/megatron_args.json",
        "iter_0001000/mp_rank_00/model_optim_rng.pt",
        "iter_0001000/mp_rank_01/model_optim_rng.pt",
        "latest_checkpointed_iteration.txt",
    ]


def test_a_link_and_its_target_keep_their_names(tmp_path: Path) -> None:
    folder = write_meta(tmp_path, CONFIG, random_model(CONFIG))
    (folder / "consolidated.00.pth").rename(folder / "zz.bin")
    (folder / "consolidated.00.pth").symlink_to("zz.bin")
    assert checked_files(open_checkpoint(folder)) == ["consolidated.00.pth", "params.json"]


def test_a_linked_folder_that_stays_inside(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path, CONFIG, random_model(CONFIG), iteration=None)
    (folder / "release").rename(folder / "kept")
    (folder / "release").symlink_to("kept")
    reader = open_checkpoint(folder)
    assert "kept/mp_rank_00/model_optim_rng.pt" in checked_files(reader)


def test_weights_without_a_name_inside_are_refused(tmp_path: Path) -> None:
    reader = open_checkpoint(write_meta(tmp_path / "a", CONFIG, random_model(CONFIG)))
    (tmp_path / "b").mkdir()
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth holds weights but is hidden"):
        NamesInside(tmp_path / "b").of(reader.tensors["norm.weight"])
    folder = write_hf(tmp_path / "c", CONFIG, random_model(CONFIG), n_shards=2)
    index = folder / "model.safetensors.index.json"
    (folder / "model-00001-of-00002.safetensors").rename(folder / ".first")
    index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", ".first"))
    with pytest.raises(CheckpointError, match=r"\.first holds weights but is hidden"):
        checked_files(open_checkpoint(folder))


def test_links_of_a_cache_have_the_names_of_the_folder(tmp_path: Path) -> None:
    weights = random_model(CONFIG)
    folder = in_cache(write_hf(tmp_path / "model", CONFIG, weights, n_shards=2), tmp_path / "hub")
    files = checked_files(open_checkpoint(folder))
    assert [name for name in files if name.startswith("model-0000")] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    write_manifest(folder)
    size_bytes = verify(folder, files)
    assert (
        size_bytes
        == sum((folder / name).stat().st_size for name in files_below(folder))
        - (folder / "MANIFEST.sha256").stat().st_size
    )


def test_files_further_in_are_named_by_their_way(tmp_path: Path) -> None:
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("b", ".hidden", ".metadata", "inner/a", "inner/deep/c", ".git/config"):
        (tmp_path / name).write_text("x")
    assert files_below(tmp_path) == [".metadata", "b", "inner/a", "inner/deep/c"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot list .*nowhere: No such file"):
        files_below(tmp_path / "nowhere")
