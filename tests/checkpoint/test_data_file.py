"""DataFile: read by position, by many threads, with few descriptors for any number of files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama.checkpoint.files import data_file
from llama.checkpoint.files.data_file import MAX_IDLE_DESCRIPTORS, DataFile
from llama.errors import CheckpointError


def n_descriptors(folder: Path) -> int:
    links = Path("/proc/self/fd")
    if not links.exists():
        pytest.skip("needs /proc")
    return sum(str(folder) in os.path.realpath(link) for link in links.iterdir())


def test_many_files_by_many_threads_hold_few_descriptors(tmp_path: Path) -> None:
    n_files, n_threads = 200, 8
    files = []
    for number in range(n_files):
        path = tmp_path / str(number)
        path.write_bytes(number.to_bytes(2, "big") * 50)
        files.append(DataFile(path))

    def read(number: int) -> bool:
        file = files[number % n_files]
        return file.read(20, 4) == (number % n_files).to_bytes(2, "big") * 2

    most = 0
    with ThreadPoolExecutor(n_threads) as threads:
        for answers in range(0, 4 * n_files, n_files):
            assert all(threads.map(read, range(answers, answers + n_files)))
            most = max(most, n_descriptors(tmp_path))

    assert 0 < most <= MAX_IDLE_DESCRIPTORS + n_threads
    for file in files:
        file.close()
    assert n_descriptors(tmp_path) == 0


def test_a_file_in_use_stays_open_beside_many_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = data_file._opened

    def counting(path: Path) -> int:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(data_file, "_opened", counting)
    files = []
    for number in range(3 * MAX_IDLE_DESCRIPTORS):
        (tmp_path / str(number)).write_bytes(b"abc")
        files.append(DataFile(tmp_path / str(number)))
    for file in files:
        assert file.read(0, 1) + files[0].read(1, 2) == b"abc"
    for _ in range(2):  # those read last are open still
        for file in files[2 - MAX_IDLE_DESCRIPTORS :]:
            file.read(0, 1)
    assert len(opened) == len(files)


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from llama.checkpoint.files.safetensors_file import load_tensors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
opened = [load_tensors(path)["a"] for path in sorted(Path(sys.argv[1]).iterdir())]
total = 0.0
for tensor in opened:
    tensor.read_into(out := torch.empty(2))
    total += float(out.sum())
print(len(opened), total)
"""


def test_more_files_than_the_process_may_open(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for number in range(100):
        content = struct.pack("<2f", number, 1)
        path = tmp_path / f"{number:03}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("100 5050.0\n", 0), done.stderr


def test_forgotten_files_give_their_descriptors_back(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    for _ in range(3 * MAX_IDLE_DESCRIPTORS):
        assert DataFile(tmp_path / "f").read(1, 2) == b"bc"
    assert n_descriptors(tmp_path) == 0


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot open"):
        DataFile(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        DataFile(tmp_path / "pipe")
