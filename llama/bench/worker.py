"""`python -m llama.bench.worker TASK FOLDER`: one task in this process, its result in the folder.

Started by `llama.bench.process`, for several ranks through the launcher. Every rank writes
FOLDER/RANK.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from llama.bench.task import Measured, Task
from llama.registry import resolve

PROGRAMS: Mapping[str, str] = MappingProxyType(
    {
        "works of llama": "llama.bench.ours:run",
        "works of transformers": "llama.bench.peers.transformers:run",
        "works of llama.cpp": "llama.bench.peers.llamacpp:run",
        "overhead of llama": "llama.bench.overhead:run",
        "limits of llama": "llama.bench.limits:run",
        "collectives of llama": "llama.bench.collectives:run",
    }
)
STARTED_AT = "LLAMA_BENCH_STARTED_AT"
"""time.time() of the moment when this process was asked for."""


def main(task_path: Path, folder: Path) -> None:
    task = Task.load(task_path)
    program: Callable[[Task], Measured] = resolve(
        PROGRAMS, f"{task.program} of {task.contestant.engine}", kind="program"
    )
    measured = program(task)
    figures = {**measured.figures, "peak_bytes": peak_bytes()}
    rank = os.environ.get("RANK", "0")
    replace(measured, figures=figures).save(folder / f"{rank}.json")


def peak_bytes() -> float:
    """The most memory that this process held, file pages that it mapped included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def since_start_s() -> float:
    """Seconds since this process was asked for, imports and the start of ranks included."""
    return time.time() - float(os.environ.get(STARTED_AT, time.time()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
