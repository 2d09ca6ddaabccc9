"""Where one run of a case takes place: a folder, a mark for its processes, and how jobs start."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.job import Job
from tests.faults.leftovers import MARK, State, kill_marked, left_behind
from tests.helpers.programs import ROOT, environment, run

PROGRAMS = "tests.faults.programs"


class Scene:
    """`folder` is the case's own, `temporary` what its processes take for the temporary folder.

    `slack` multiplies the time limits of the case.
    """

    def __init__(self, folder: Path, *, slack: float = 1.0) -> None:
        self.folder = folder
        self._slack = slack
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._mark = uuid.uuid4().hex
        self._jobs: list[Job] = []
        self._before = State.now()

    def launch(
        self,
        program: str,
        *args: str,
        nproc: int = 2,
        flags: Sequence[str] = (),
        python: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Job:
        """Start `nproc` ranks of a program of the programs folder; `flags` are the launcher's."""
        folder = self.new_folder()
        words = [*python, "-m", "launch", "--nproc", str(nproc), *flags, "-m"]
        process = subprocess.Popen(
            [sys.executable, *words, f"{PROGRAMS}.{program}", str(folder), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(self.marks | dict(env or {})),
        )
        return self.watch(process, folder)

    @property
    def marks(self) -> dict[str, str]:
        """What every process of the scene has in its environment."""
        return {MARK: self._mark, "TMPDIR": str(self.temporary)}

    def new_folder(self) -> Path:
        folder = self.folder / f"job-{len(self._jobs)}-{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        return folder

    def watch(self, process: subprocess.Popen[bytes], folder: Path) -> Job:
        job = Job(process, folder, slack=self._slack)
        self._jobs.append(job)
        return job

    def left_behind(self) -> list[str]:
        return left_behind(self._before, self._mark, self.temporary)

    def close(self) -> None:
        """End whatever still runs."""
        kill_marked(self._mark)
        for job in self._jobs:
            job.wait_end()


@cache
def answer_of_one_process(*args: str) -> list[int]:
    """What `decode` answers without any launcher."""
    with TemporaryDirectory() as folder:
        words = ["-m", f"{PROGRAMS}.decode", folder, *args]
        done = run(words, env={"OMP_NUM_THREADS": "1"}, deadline_s=180)
    return answers(done.stdout.splitlines())[-1]


def answers(lines: Sequence[str]) -> list[list[int]]:
    """Every "answer [ids]" among the lines."""
    found = [line.partition("answer ")[2] for line in lines if "answer [" in line]
    return [list(json.loads(text)) for text in found]
