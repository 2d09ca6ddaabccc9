"""File names that a checkpoint gives: plain ones, and the ways out of its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llama.checkpoint.files.names import plain_file
from llama.errors import CheckpointError

OUTSIDE = ["", ".", "..", "../x", "/etc/passwd", "sub/x", "./x", "x/", "..\\x", "a\0b", "x" * 256]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder, with a file outside it."""
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "ckpt").mkdir()
    return tmp_path / "ckpt"


@pytest.mark.parametrize("name", ["model.safetensors", "..x", "x..", "ü", "a b", "x" * 255, "-rf"])
def test_a_plain_name_is_a_file_of_the_folder(name: str, folder: Path) -> None:
    assert plain_file(folder, name) == folder / name


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="plain names inside its folder") as caught:
        plain_file(folder, name)
    assert str(folder) in str(caught.value)
    assert ascii(name[:80]) in str(caught.value)


def test_a_name_that_no_file_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no valid text"):
        plain_file(folder, "\ud800")


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "..", "chain"])
def test_a_link_out_of_the_folder_is_refused(target: str, folder: Path) -> None:
    (folder / "chain").symlink_to("../outside")
    (folder / "model.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match="a link that leads out of its folder, to /"):
        plain_file(folder, "model.safetensors")


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "weights").write_text("w")
    (folder / "model.safetensors").symlink_to("weights")
    assert plain_file(folder, "model.safetensors") == folder / "model.safetensors"


def test_a_folder_that_is_a_link_itself_is_the_users_choice(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_text("w")
    (tmp_path / "link").symlink_to(folder)
    assert plain_file(tmp_path / "link", "model.safetensors").read_text() == "w"


def test_a_loop_of_links_is_left_to_whoever_opens_it(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert plain_file(folder, "a") == folder / "a"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A revision in a cache that has two models."""
    root = tmp_path / "hub" / "models--meta--tiny"
    for blobs in (root / "blobs", tmp_path / "hub" / "models--other--tiny" / "blobs"):
        blobs.mkdir(parents=True)
        (blobs / "abc").write_text("w")
    (root / "snapshots" / "rev" / "original").mkdir(parents=True)
    return root / "snapshots" / "rev"


def test_the_cache_of_hugging_face_may_link_to_its_blobs(snapshot: Path) -> None:
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "original" / "params.json").symlink_to("../../../blobs/abc")
    assert plain_file(snapshot, "model.safetensors").read_text() == "w"
    assert plain_file(snapshot / "original", "params.json").read_text() == "w"


@pytest.mark.parametrize(
    "target", ["../../../models--other--tiny/blobs/abc", "../../../../outside", "/etc/passwd"]
)
def test_the_cache_may_not_link_out_of_its_model(target: str, snapshot: Path) -> None:
    (snapshot / "model.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        plain_file(snapshot, "model.safetensors")


def test_what_only_looks_like_a_cache_gets_no_wider(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "snapshots" / "rev"
    folder.mkdir(parents=True)
    (tmp_path / "x" / "blob").write_text("w")
    (folder / "model.safetensors").symlink_to("../../blob")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        plain_file(folder, "model.safetensors")


OPENING = """
import os, sys
from pathlib import Path
from llama.checkpoint.formats.hf import HF
from llama.errors import CheckpointError
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        opened.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(hook)
try:
    HF.open(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
print(os.path.realpath(sys.argv[2]) in opened)
"""


@pytest.mark.parametrize("way", ["inside", "relative", "absolute", "link", "index link"])
def test_a_file_outside_is_never_opened(way: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.safetensors", tmp_path / "ckpt"
    outside.write_bytes((2).to_bytes(8, "little") + b"{}")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    named = {"relative": "../outside.safetensors", "absolute": str(outside)}.get(way, "shard")
    index = folder / "model.safetensors.index.json"
    if way == "index link":
        index.symlink_to(outside)
    else:
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": named}}))
    if way == "link":
        (folder / "shard").symlink_to(outside)
    if way == "inside":  # shows that the hook would see it
        outside = outside.rename(folder / "shard")
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(folder), str(outside)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    message, was_opened = done.stdout.splitlines()
    assert was_opened == str(way == "inside")
    assert ("lacks lm_head.weight" in message) == (way == "inside")
    assert str(folder) in message
