"""`make bench-window`: what a decoded token costs 1, 4 and 20 windows into a sequence.

One run makes a random model twice, with and without a sliding window, and lets each continue
prompts of these lengths in one process, in turns. Prints a table and one line of JSON. With a
window the cost must stay where it is, and so must the blocks in use.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.parallel.context import single
from tests.helpers.checkpoints import random_model, tiny_config
from tests.helpers.engines import make_engine
from tests.helpers.mistral_files import write_mistral

WINDOW = 256
LENGTHS = (1, 4, 20)
"""In windows."""
N_TOKENS = 32
N_ROUNDS = 2
SIZES: dict[str, Any] = {
    "dim": 512,
    "n_layers": 4,
    "n_heads": 8,
    "n_kv_heads": 8,
    "head_dim": 64,
    "ffn_dim": 1408,
    "vocab_size": 4000,
}


@dataclass(frozen=True)
class Row:
    """One model at one length, in milliseconds a token over all rounds.

    `ratio` is to the same model at the first length, by the least: what is above it is other
    work of the machine.
    """

    window: int | None
    n_windows: int
    least_ms: float
    median_ms: float
    ratio: float
    n_blocks: int


def make_engines(root: Path) -> dict[int | None, Engine]:
    """By window, on the same weights."""
    found = {}
    for window in (WINDOW, None):
        config = tiny_config(**SIZES, sliding_window=window)
        folder = write_mistral(root / str(window), config, random_model(config))
        found[window] = make_engine(
            single(),
            folder,
            max_seq_len=LENGTHS[-1] * WINDOW + N_TOKENS + 1,
            max_batch_size=1,
            block_size=16,
            max_num_batched_tokens=512,
        )
    return found


def decode(engine: Engine, n_prompt: int) -> tuple[list[float], int]:
    """Milliseconds of each token after the first, and the most blocks in use."""
    prompt = [1 + at % 3000 for at in range(n_prompt)]
    params = SamplingParams(temperature=0.0, max_tokens=N_TOKENS + 1)
    ends, n_blocks = [], 0
    for request in engine.stream(engine.make_requests([prompt], [params])):
        if request is not None:
            ends.append(time.perf_counter())
        n_blocks = max(n_blocks, engine.cache.num_blocks - engine.scheduler.num_free_blocks)
    return [1e3 * (end - start) for start, end in pairwise(ends)], n_blocks


def measure(engines: dict[int | None, Engine]) -> Iterator[Row]:
    times: dict[tuple[int | None, int], list[float]] = {}
    blocks = {}
    for _ in range(N_ROUNDS):
        for n_windows in LENGTHS:
            for window, engine in engines.items():
                found, blocks[window, n_windows] = decode(engine, n_windows * WINDOW)
                times.setdefault((window, n_windows), []).extend(found)
    for (window, n_windows), own in sorted(times.items(), key=lambda item: item[0][0] is None):
        yield Row(
            window=window,
            n_windows=n_windows,
            least_ms=min(own),
            median_ms=statistics.median(own),
            ratio=min(own) / min(times[window, LENGTHS[0]]),
            n_blocks=blocks[window, n_windows],
        )


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        cpu = dict((name.strip(), value.strip()) for name, value in lines).get("model name", cpu)
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"


def print_table(rows: list[Row]) -> None:
    print(machine())
    print()
    print("| sliding window | context | least ms a token | median | beside 1 window | blocks |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [row.window or "none", f"{row.n_windows} × {WINDOW}"]
        cells += [f"{number:.2f}" for number in (row.least_ms, row.median_ms, row.ratio)]
        print(f"| {' | '.join(map(str, [*cells, row.n_blocks]))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="bench-window-") as root:
        rows = list(measure(make_engines(Path(root))))
    print_table(rows)
    text = json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]})
    print(f"\n{text}")
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
