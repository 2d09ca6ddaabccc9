"""`make bench-load`: what loading costs in bytes, seconds and memory, and what safetensors costs.

One run writes a random Llama of about a gigabyte as Hugging Face and as Meta files, and prints a
table and one line of JSON. Warm: the files are in the page cache. `load_file` alone only maps them
and reads nothing; with a copy it ends as we do, with all weights in the process's own memory. Cold:
the files were dropped from the cache; bytes are the kernel's own count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from llama.checkpoint import open_checkpoint
from llama.checkpoint.loading.load_report import LoadReport
from llama.checkpoint.loading.loader import load
from llama.checkpoint.loading.peak import PeakMemory
from llama.models.decoder import tensor_names
from llama.parallel.context import ParallelContext
from tests.helpers.checkpoints import Weights, shapes, tiny_config, write_meta
from tests.helpers.hf_files import write_hf
from tests.helpers.ranks import run_layout
from tests.helpers.stage_loads import load_stage
from tests.helpers.stage_weights import stage_at

N_RUNS = 5
DTYPE = torch.bfloat16
SIZES: dict[str, Any] = {
    "dim": 2048,
    "n_layers": 8,
    "n_heads": 16,
    "n_kv_heads": 8,
    "head_dim": 128,
    "ffn_dim": 5632,
    "vocab_size": 32000,
}
GB = 1e9
MB = 1e6


@dataclass(frozen=True)
class Warm:
    """Loading in one process: median seconds, and its spread."""

    how: str
    median_s: float
    least_s: float
    most_s: float
    peak_mb: float


@dataclass(frozen=True)
class Cold:
    """Loading on several ranks of one host; bytes are sums over them."""

    files: str
    tp: int
    held_gb: float
    device_read_gb: float
    asked_gb: float
    handed_gb: float
    ratio: float
    seconds: float
    worst_peak_over_shard_mb: float


def write_files(root: Path) -> dict[str, Path]:
    config = tiny_config(**SIZES)
    generator = torch.Generator().manual_seed(0)
    weights: Weights = {
        name: torch.empty(shape, dtype=DTYPE).normal_(generator=generator)
        for name, shape in shapes(config).items()
    }
    folders = {"hf": write_hf(root / "hf", config, weights, dtype=DTYPE)}
    for n_files in (1, 2):
        folder = root / f"meta_x{n_files}"
        folders[folder.name] = write_meta(folder, config, weights, n_files=n_files, dtype=DTYPE)
    return folders


def load_ours(folder: Path) -> LoadReport:
    reader = open_checkpoint(folder)
    stage = stage_at(reader.config, 1, 1, 0, dtype=DTYPE)
    report = load(stage, reader, device="cpu", all_names=tensor_names(reader.config))
    reader.close()
    return report


def map_only(folder: Path) -> object:
    return load_file(folder / "model.safetensors")


def map_and_copy(folder: Path) -> object:
    mapped = load_file(folder / "model.safetensors")
    return {name: mapped.pop(name).clone() for name in list(mapped)}


WAYS: dict[str, Callable[[Path], object]] = {
    "llama": load_ours,
    "load_file": map_only,
    "load_file and copy": map_and_copy,
}


def warm_loads(folder: Path) -> Iterator[Warm]:
    """All ways in turns, so that a change of the machine's mood meets all alike.

    Each load has a fresh process: memory that an earlier one gave back is cheaper to take.
    """
    found: dict[str, list[tuple[float, float]]] = {how: [] for how in WAYS}
    for turn in range(N_RUNS + 1):
        for how in WAYS:
            command = [sys.executable, "-m", "tests.benchmarks.load", "--one", how, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            seconds, peak_bytes = map(float, done.stdout.split())
            if turn:  # the first one fills the page cache
                found[how].append((seconds, peak_bytes / MB))
    for how, runs in found.items():
        seconds_of_all, peaks = zip(*runs, strict=True)
        median = statistics.median(seconds_of_all)
        yield Warm(how, median, min(seconds_of_all), max(seconds_of_all), max(peaks))


def load_once(how: str, folder: Path) -> None:
    """Print the seconds and the peak in bytes of one load."""
    open_checkpoint(folder).close()  # imports what the reader needs
    peak = PeakMemory()
    began = time.perf_counter()
    held = WAYS[how](folder)
    print(time.perf_counter() - began, peak.nbytes)
    del held


def cold_load(folder: Path, tp: int) -> Cold:
    for path in folder.iterdir():
        drop_from_cache(path)
    ranks = run_layout(load_rank, str(folder), tp=tp, deadline_s=300)
    reports = [report for report, _, _ in ranks]
    held = sum(report.bytes_held for report in reports)
    asked = sum(asked_bytes for _, asked_bytes, _ in ranks)
    device_read = sum(device_bytes for _, _, device_bytes in ranks)
    return Cold(
        files=folder.name,
        tp=tp,
        held_gb=held / GB,
        device_read_gb=device_read / GB,
        asked_gb=asked / GB,
        handed_gb=sum(report.bytes_handed for report in reports) / GB,
        ratio=max(device_read, asked) / held,
        seconds=max(report.seconds for report in reports),
        worst_peak_over_shard_mb=max(r.peak_bytes - r.bytes_held for r in reports) / MB,
    )


def load_rank(context: ParallelContext, folder: str) -> tuple[LoadReport, int, int]:
    """What the rank reports, and the bytes that it asked of files and of the disk."""
    torch.set_num_threads(1)
    done = load_stage(context, folder, dtype=DTYPE)
    return done.report, done.asked_bytes, done.device_bytes


def drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def print_table(warm: list[Warm], cold: list[Cold]) -> None:
    print(
        "| one process, warm cache, fresh each time | median s | least | most | peak over idle MB |"
    )
    print("|---|---|---|---|---|")
    for row in warm:
        times = f"{row.median_s:.3f} | {row.least_s:.3f} | {row.most_s:.3f}"
        print(f"| {row.how} | {times} | {row.peak_mb:.0f} |")
    print()
    print(
        "| cold files | tp | held GB | read from disk GB | asked of files GB | handed GB | "
        "most read / held | s | peak of a rank over its shard MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in cold:
        print(
            f"| {row.files} | {row.tp} | {row.held_gb:.3f} | {row.device_read_gb:.3f} | "
            f"{row.asked_gb:.3f} | {row.handed_gb:.3f} | {row.ratio:.3f} | {row.seconds:.2f} | "
            f"{row.worst_peak_over_shard_mb:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--one", nargs=2, metavar=("HOW", "FOLDER"), help="used by itself")
    given = parser.parse_args()
    if given.one:
        load_once(given.one[0], Path(given.one[1]))
        return
    with TemporaryDirectory(prefix="bench-load-") as root:
        folders = write_files(Path(root))
        cold = [cold_load(folder, tp) for folder in folders.values() for tp in (2, 4)]
        warm = list(warm_loads(folders["hf"]))
    print_table(warm, cold)
    text = json.dumps({"warm": [asdict(row) for row in warm], "cold": [asdict(c) for c in cold]})
    print(f"\n{text}")
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
