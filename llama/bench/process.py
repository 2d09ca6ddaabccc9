"""One task in fresh processes with declared threads; they are gone when it returns."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llama.bench.task import Measured, Task
from llama.bench.worker import STARTED_AT
from llama.errors import LlamaError

_HOME = Path(__file__).parents[2]
_WORKER = ("-m", "llama.bench.worker")
_DEADLINE_S = 1800.0
_GRACE_S = 15.0
_KEPT_CHARACTERS = 400
"""Of what a process said before it failed."""
_OF_ANOTHER_JOB = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "LLAMA_TP",
    "LLAMA_PP",
    "TORCHELASTIC",
)


class ProcessFailure(LlamaError):
    """A task came to no result; the message is what its process said last."""


@dataclass(frozen=True)
class Outcome:
    """What every rank found, in rank order."""

    ranks: tuple[Measured, ...]

    @property
    def first(self) -> Measured:
        return self.ranks[0]

    def total(self, figure: str) -> float:
        return sum(rank.figures[figure] for rank in self.ranks)

    def most(self, figure: str) -> float:
        return max(rank.figures[figure] for rank in self.ranks)


def run(task: Task, *, deadline_s: float = _DEADLINE_S) -> Outcome:
    """Raises ProcessFailure when it fails, or is not done after `deadline_s`."""
    n_ranks = task.contestant.n_ranks
    with TemporaryDirectory(prefix="llama-bench-") as name:
        folder = Path(name)
        task.save(folder / "task.json")
        log = folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                _command(task, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(task, os.environ),
                start_new_session=True,
            )
            try:
                status = process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                raise ProcessFailure(
                    f"{task.contestant.name}: not done after {deadline_s:.0f} s"
                ) from None
            finally:
                _end(process)
        results = [folder / f"{rank}.json" for rank in range(n_ranks)]
        if status or not all(path.is_file() for path in results):
            raise ProcessFailure(f"{task.contestant.name}: {_last_words(log, status)}")
        return Outcome(tuple(map(Measured.load, results)))


def _command(task: Task, folder: Path) -> list[str]:
    worker = [*_WORKER, str(folder / "task.json"), str(folder)]
    contestant = task.contestant
    if contestant.n_ranks == 1:
        return [sys.executable, *worker]
    sizes = ["--nproc", contestant.n_ranks, "--tp", contestant.tp, "--pp", contestant.pp]
    return [sys.executable, "-m", "launch", *map(str, sizes), *worker]


def _environment(task: Task, environ: Mapping[str, str]) -> dict[str, str]:
    """Of the user's, without what another launch has set: threads, and where we are."""
    kept = {name: text for name, text in environ.items() if not name.startswith(_OF_ANOTHER_JOB)}
    paths = [str(_HOME), *filter(None, [environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(task.contestant.n_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        STARTED_AT: str(time.time()),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """The launcher ends its ranks when it is asked to stop; whoever does not listen is killed."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.kill(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


def _last_words(log: Path, status: int) -> str:
    """The error that a rank told of, else the last line, else the exit status."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\w(Error|Exception): ", line)]
    said = (errors[:1] or lines[-1:] or [f"exit status {status}"])[0]
    return said[:_KEPT_CHARACTERS]
