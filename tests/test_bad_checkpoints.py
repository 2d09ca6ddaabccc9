"""Broken, hostile and differing checkpoints on two launched ranks: what each ends in.

Every case has its exit status, its deadline, and a message that names the file, the rank and the
host. The deadlines are those that the project promises, plus what starting two interpreters may
take on a busy machine.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.config import ModelConfig
from tests.helpers.checkpoints import random_model, shapes, write_meta
from tests.helpers.hf_files import hf_config, hf_weights, write_hf
from tests.helpers.programs import run
from tests.helpers.refusals import CONFIG, VOCAB_SIZE
from tests.helpers.tokenizers import write_sentencepiece

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
STARTING_S = 50.0
nightly = pytest.mark.nightly  # a launch costs seconds, and the readers' own tests have these too
MARKER = "the_payload_ran"


@dataclass(frozen=True)
class Files:
    """One tokenizer, one good folder of each kind to spoil a copy of, and room for the copies."""

    folder: Path
    tokenizer: Path
    meta: Path
    hf: Path
    hf_bin: Path

    def copy(self, source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, self.folder / name))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("bad")
    weights = random_model(CONFIG)
    return Files(
        folder,
        write_sentencepiece(folder / "tokenizer.model", vocab_size=VOCAB_SIZE),
        write_meta(folder / "meta", CONFIG, weights, n_files=2),
        write_hf(folder / "hf", CONFIG, weights, kind="safetensors", n_shards=2),
        write_hf(folder / "hf_bin", CONFIG, weights, kind="bin", n_shards=2),
    )


def load(
    files: Files, *folders: Path, deadline_s: float, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    words = ["-m", "launch", "--nproc", "2", "--tp", "2", "-m", "tests.helpers.load_folder"]
    return run(
        [*words, str(files.tokenizer), *map(str, folders)],
        env={"TORCH_DISTRIBUTED_DEBUG": None, **(env or {})},
        deadline_s=STARTING_S + deadline_s,
    )


def check_refusal(done: subprocess.CompletedProcess[str], status: int, *patterns: str) -> None:
    assert done.returncode == status, done.stderr
    assert "loaded" not in done.stdout
    for pattern in patterns:
        assert re.search(pattern, done.stderr), f"{pattern!r} is not in:\n{done.stderr}"
    assert re.search(rf"\[rank [01] {re.escape(HOST)}\]", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stderr


def test_a_good_one_loads(files: Files) -> None:
    """One stands for all: test_every_format loads the others."""
    done = load(files, files.hf, deadline_s=30)
    assert done.returncode == 0 and done.stdout.count("loaded") == 2, done.stderr


# L01, L02: a file is cut off or missing --------------------------------------------------------


def cut_in_half(path: Path) -> int:
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return size // 2


@pytest.mark.parametrize("kind", ["meta", "hf", pytest.param("hf_bin", marks=nightly)])
def test_l01_a_file_cut_in_half(files: Files, kind: str) -> None:
    folder = files.copy(getattr(files, kind), f"l01_{kind}")
    broken = sorted(path for path in folder.iterdir() if path.suffix != ".json")[-1]
    size = cut_in_half(broken)

    done = load(files, folder, deadline_s=10)

    check_refusal(done, 65, re.escape(str(broken)), "truncated", f"{size:,}")


@pytest.mark.parametrize(("kind", "optimise"), [("meta", None), ("hf", "1")])
def test_l02_a_missing_file(files: Files, kind: str, optimise: str | None) -> None:
    folder = files.copy(getattr(files, kind), f"l02_{kind}_{optimise}")
    missing = sorted(path for path in folder.iterdir() if path.suffix != ".json")[-1]
    missing.unlink()

    done = load(files, folder, deadline_s=5, env={"PYTHONOPTIMIZE": optimise or ""})

    check_refusal(done, 65, re.escape(missing.name), "missing", "2.*1|1.*2")


# L03: code in a file ---------------------------------------------------------------------------


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("kind", "container"),
    [
        ("meta", "zip"),
        pytest.param("meta", "bare", marks=nightly),
        pytest.param("hf_bin", "zip", marks=nightly),
        ("hf_bin", "legacy"),
    ],
)
def test_l03_a_payload_is_refused_and_does_not_run(files: Files, kind: str, container: str) -> None:
    folder = files.copy(getattr(files, kind), f"l03_{kind}_{container}")
    marker = folder / MARKER
    infected = sorted(folder.glob("*.pth")) or sorted(folder.glob("*.bin"))
    content = torch.load(infected[-1], weights_only=True)
    content["norm.weight"] = Payload(marker)
    if container == "bare":
        infected[-1].write_bytes(pickle.dumps(content["norm.weight"]))
    else:
        is_zip = container == "zip"
        torch.save(content, infected[-1], _use_new_zipfile_serialization=is_zip)

    done = load(files, folder, deadline_s=10)

    check_refusal(done, 65, re.escape(str(infected[-1])), "posix.system|bare pickle|not a file")
    assert not marker.exists()


# L04: names that lead elsewhere ----------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", pytest.param("absolute", marks=nightly), "link"])
def test_l04_an_index_that_leads_out_of_the_folder(files: Files, way: str) -> None:
    folder = files.copy(files.hf, f"l04_{way}")
    outside = files.folder / f"outside_{way}.safetensors"
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = sorted(set(content["weight_map"].values()))
    shutil.move(folder / names[0], outside)
    if way == "link":
        (folder / names[0]).symlink_to(outside)
    else:
        elsewhere = f"../{outside.name}" if way == "up" else str(outside)
        content["weight_map"] = {
            name: elsewhere if file == names[0] else file
            for name, file in content["weight_map"].items()
        }
        index.write_text(json.dumps(content))

    done = load(files, folder, deadline_s=10)

    check_refusal(done, 65, re.escape(str(folder)), "outside|one plain|plain file|path")


# L05: what a failed download leaves ------------------------------------------------------------

ACCIDENTS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 4242\n", "git lfs pull"),
    "page": (b"<!DOCTYPE html><html>Please log in</html>", "HTML page"),
    "empty": (b"", "empty"),
    "zeros": (bytes(4096), "zeros"),
}


@pytest.mark.parametrize(
    ("kind", "accident"),
    [
        ("meta", "pointer"),
        ("hf", "page"),
        pytest.param("hf_bin", "empty", marks=nightly),
        pytest.param("hf", "zeros", marks=nightly),
    ],
)
def test_l05_an_accident_is_called_by_its_name(files: Files, kind: str, accident: str) -> None:
    content, cause = ACCIDENTS[accident]
    folder = files.copy(getattr(files, kind), f"l05_{kind}_{accident}")
    broken = sorted(path for path in folder.iterdir() if path.suffix != ".json")[-1]
    broken.write_bytes(content)

    done = load(files, folder, deadline_s=10)

    check_refusal(done, 65, re.escape(str(broken)), cause)


# L06: a header that lies -----------------------------------------------------------------------


def change_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(value for name, value in header.items() if name[:2] != "__")
    return found


LIES: dict[str, Callable[[Path], None]] = {
    "length": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "overlap": lambda path: change_header(
        path,
        lambda h: [t.update(data_offsets=[0, t["data_offsets"][1] - t["data_offsets"][0]])
                   for n, t in h.items() if n[:2] != "__"],
    ),
    "dtype": lambda path: change_header(path, lambda h: first_tensor(h).update(dtype="F7")),
}  # fmt: skip


@pytest.mark.parametrize("lie", ["length", pytest.param("overlap", marks=nightly), "dtype"])
def test_l06_a_header_that_lies(files: Files, lie: str) -> None:
    folder = files.copy(files.hf, f"l06_{lie}")
    broken = sorted(folder.glob("*.safetensors"))[-1]
    LIES[lie](broken)

    done = load(files, folder, deadline_s=10)

    check_refusal(done, 65, re.escape(str(broken)))


# L07: a flipped byte -----------------------------------------------------------------------------


def test_l07_a_flipped_byte_is_found_when_asked(files: Files) -> None:
    folder = files.copy(files.hf, "l07")
    verify = {"LLAMA_TEST_VERIFY": "1"}
    listed = run(["-m", "llama", "inspect", str(folder), "--write_manifest"], deadline_s=STARTING_S)
    assert listed.returncode == 0, listed.stderr
    assert load(files, folder, deadline_s=10, env=verify).returncode == 0
    broken = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(broken.read_bytes())
    content[-100] ^= 1
    broken.write_bytes(content)

    assert load(files, folder, deadline_s=10).returncode == 0  # nobody looked
    done = load(files, folder, deadline_s=10, env=verify)

    check_refusal(done, 65, re.escape(broken.name), "sha256")


# L09: not enough memory --------------------------------------------------------------------------


def write_hollow(path: Path, config: ModelConfig) -> Path:
    """A Hugging Face folder of zeros that take no room on the disk."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes(config).items()}
    header, offset = {}, 0
    for name, weight in hf_weights(config, empty, is_half=True).items():
        size = 4 * weight.numel()
        place = [offset, offset + size]
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": place}
        offset += size
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf_config(config)))
    text = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


def test_l09_too_little_memory_is_said_with_need_and_have(files: Files) -> None:
    config = replace(CONFIG, dim=2048, n_heads=16, head_dim=128, ffn_dim=8192, n_layers=12)
    folder = write_hollow(files.folder / "l09", config)
    room = {"LLAMA_TEST_ADDRESS_SPACE": str(1200 * 2**20)}

    done = load(files, folder, deadline_s=20, env=room)

    check_refusal(done, 71, r"weights need [\d,]+ bytes .* of which [\d,]+ bytes .* could be had")


# L10, L11: ranks that were given different things ----------------------------------------------


def test_l11_other_weights_of_the_same_shape_on_one_rank(files: Files) -> None:
    other = write_meta(files.folder / "l11", CONFIG, random_model(CONFIG, seed=5), n_files=2)

    done = load(files, files.meta, other, deadline_s=10)

    check_refusal(done, 76, "checkpoint.*rank 0.*rank 1")
