"""Digests of a checkpoint's files: Meta's checklist and ours, checked file by file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llama.checkpoint.manifest import (
    CHECKLIST,
    MANIFEST,
    deal,
    read_digests,
    verify,
    verify_share,
    write_manifest,
)
from llama.errors import CheckpointError
from tests.helpers.checkpoints import random_model, tiny_config, write_meta


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config()
    return write_meta(tmp_path / "model", config, random_model(config), n_files=2)


def write_checklist(folder: Path) -> None:
    lines = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    (folder / CHECKLIST).write_text("".join(lines))


def flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)


def test_what_was_written_is_verified(folder: Path) -> None:
    assert write_manifest(folder) == folder / MANIFEST
    assert set(read_digests(folder)) == {
        "consolidated.00.pth", "consolidated.01.pth", "params.json",
    }  # fmt: skip
    hashed: list[int] = []
    n_bytes = verify(folder, ["consolidated.00.pth"], progress=hashed.append)
    assert n_bytes == sum(hashed) == total_bytes(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_reads_the_manifest(folder: Path) -> None:
    write_manifest(folder)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST],
        cwd=folder, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 3


@pytest.mark.parametrize("kind", ["md5", "sha256"])
@pytest.mark.parametrize("name", ["consolidated.01.pth", "params.json"])
def test_a_flipped_byte_is_found_and_its_file_named(folder: Path, kind: str, name: str) -> None:
    write_checklist(folder) if kind == "md5" else write_manifest(folder)
    flip_byte(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    (digests,) = (read_digests(folder)[name],)
    found = hashlib.new(kind, (folder / name).read_bytes()).hexdigest()
    assert f"{folder / name} is not the file" in str(caught.value)
    assert f"its {kind} is {found}, listed is {digests[0].value}" in str(caught.value)


def test_both_manifests_count(folder: Path) -> None:
    write_checklist(folder)
    write_manifest(folder)
    assert {digest.algorithm for digest in read_digests(folder)["params.json"]} == {"md5", "sha256"}
    verify(folder)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace(text[:64], "0" * 64))
    with pytest.raises(CheckpointError, match="MANIFEST"):
        verify(folder)


def test_without_a_manifest_the_message_says_how_to_write_one(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"llama inspect {folder} --write_manifest"):
        verify(folder)


def test_a_file_that_no_manifest_lists_is_not_trusted(folder: Path) -> None:
    write_manifest(folder)
    (folder / "consolidated.02.pth").write_bytes(b"more")
    verify(folder)
    with pytest.raises(CheckpointError, match=r"consolidated\.02\.pth cannot be verified"):
        verify(folder, ["consolidated.00.pth", "consolidated.02.pth"])


def test_a_checklist_need_not_list_the_tokenizer(folder: Path) -> None:
    write_checklist(folder)
    (folder / "tokenizer.model").write_bytes(b"words")
    files = ["consolidated.00.pth", "params.json", "tokenizer.model"]
    verify(folder, files)
    path = folder / CHECKLIST
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.endswith("params.json")))
    with pytest.raises(CheckpointError, match=r"params\.json cannot be verified: checklist\.chk"):
        verify(folder, files)


def test_what_only_the_checklist_lists_is_missing_in_the_manifest(folder: Path) -> None:
    write_checklist(folder)
    write_manifest(folder)
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().splitlines()[0])
    with pytest.raises(CheckpointError, match=r"params\.json cannot be verified: MANIFEST"):
        verify(folder, ["consolidated.00.pth", "params.json"])


def test_a_listed_file_that_is_missing_is_named(folder: Path) -> None:
    write_manifest(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"cannot open .*consolidated\.01\.pth"):
        verify(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_ranks_of_a_host_hash_every_file_once(folder: Path, size: int) -> None:
    write_manifest(folder)
    done = [verify_share(folder, rank=rank, size=size) for rank in range(size)]
    assert sum(done) == total_bytes(folder)


def test_one_rank_finds_the_damage(folder: Path) -> None:
    write_manifest(folder)
    flip_byte(folder / "params.json", 0)
    faults = 0
    for rank in range(3):
        try:
            verify_share(folder, rank=rank, size=3)
        except CheckpointError:
            faults += 1
    assert faults == 1


def test_the_deal_is_even_and_the_same_for_everybody() -> None:
    sizes = {"a": 10, "b": 9, "c": 8, "d": 7, "e": 1}
    assert deal(sizes, 2) == [["a", "d", "e"], ["b", "c"]]
    assert deal(dict(reversed(sizes.items())), 2) == deal(sizes, 2)
    assert deal({}, 2) == [[], []]


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no file"),
        ("hello\n", "line 1: expected 64 hexadecimal digits"),
        (f"{DIGEST[1:]}  params.json\n", "line 1: expected 64"),
        (f"{DIGEST}  params.json\n{DIGEST}  params.json\n", "lists 'params.json' twice"),
        (f"{DIGEST}  ../outside\n", "leads out of its folder"),
        (f"{DIGEST}  /etc/passwd\n", "leads out of its folder"),
        (f"{DIGEST}  link/secret\n", "leads out of its folder"),
        (f"{DIGEST}  secret\n", "leads out of its folder"),
        (f"{DIGEST}  ..\n", "plain names inside its folder"),
        ("\xff\xfe", "line 1"),
    ],
)
def test_a_manifest_is_not_trusted(folder: Path, text: str, message: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    os.symlink(outside, folder / "link")
    os.symlink(outside / "secret", folder / "secret")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_a_manifest_that_is_no_text(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot read"):
        verify(folder)


def test_files_in_folders_of_their_own_are_listed(tmp_path: Path) -> None:
    (tmp_path / "iter_0000001" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "iter_0000001" / "mp_rank_00" / "weights.pt").write_bytes(b"weights")
    (tmp_path / ".hidden").write_text("not listed")
    write_manifest(tmp_path)
    assert list(read_digests(tmp_path)) == ["iter_0000001/mp_rank_00/weights.pt"]
    assert verify(tmp_path) == 7


def test_a_name_that_a_manifest_cannot_hold(folder: Path) -> None:
    (folder / "two\nlines").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot list 'two\\nlines'"):
        write_manifest(folder)
    assert not (folder / MANIFEST).exists()


def test_an_empty_folder_gets_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no file"):
        write_manifest(tmp_path)


def test_an_older_manifest_is_replaced(folder: Path) -> None:
    (folder / MANIFEST).write_text(f"{DIGEST}  params.json\n")
    write_manifest(folder)
    assert verify(folder) == total_bytes(folder)
