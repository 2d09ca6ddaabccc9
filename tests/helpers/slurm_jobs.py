"""The batch scripts of launch/slurm as a user runs them: a copy with three lines edited, two ranks.

`srun` and `scontrol` are the stand-ins; every node is this machine. What runs ends as
programs.started says.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess, Popen

from tests.helpers import programs

SCRIPTS = programs.ROOT / "launch" / "slurm"
STAND_INS = programs.ROOT / "tests" / "helpers" / "stand_ins"
JOB_ID = str(os.getpid())
"""The ports of a job follow from it, and tests run side by side."""
SIZES = {
    "launch": "ranks_per_node={per_node} tp=2 pp=1",
    "srun": "export LLAMA_TP_SIZE=2 LLAMA_PP_SIZE=1",
    "torchrun": "ranks_per_node={per_node} && export LLAMA_TP_SIZE=2 LLAMA_PP_SIZE=1",
}
"""The third line of each script."""
_BATCH = ["-c", "import os, sys; os.execvp('bash', ['bash', *sys.argv[1:]])"]


@dataclass(frozen=True)
class Job:
    """A script in `folder`, its three lines saying `python program...`; one or two `hosts`."""

    folder: Path
    script: str
    python: str
    program: Sequence[str] = ()
    hosts: tuple[str, ...] = ("localhost",)
    restarts: int = 0

    @property
    def env(self) -> dict[str, str]:
        """What SLURM sets for the script, and where the stand-ins are found."""
        per_node = self._ranks_per_node if self.script == "srun" else 1
        restarts = {"SLURM_RESTART_COUNT": str(self.restarts)} if self.restarts else {}
        return {
            "PATH": f"{STAND_INS}{os.pathsep}{os.environ['PATH']}",
            "STAND_IN_REQUEUES": str(self.folder / "requeues"),
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_JOB_NODELIST": ",".join(self.hosts),
            "SLURM_JOB_NUM_NODES": str(len(self.hosts)),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_NTASKS": str(per_node * len(self.hosts)),
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_PROCID": "0",  # of the batch script itself, as the next two
            "SLURM_NODEID": "0",
            "SLURM_LOCALID": "0",
            **restarts,
        }

    @property
    def requeues(self) -> list[str]:
        """The jobs that were put back into the queue."""
        record = self.folder / "requeues"
        return record.read_text().split() if record.exists() else []

    def run(self, *, deadline_s: float = 90) -> CompletedProcess[str]:
        words = [*_BATCH, self._edited()]
        return programs.run(words, env=self.env, cwd=self.folder, deadline_s=deadline_s)

    def started(self) -> AbstractContextManager[Popen[str]]:
        return programs.started([*_BATCH, self._edited()], env=self.env, cwd=self.folder)

    @property
    def _ranks_per_node(self) -> int:
        return 2 // len(self.hosts)

    def _edited(self) -> str:
        lines = (SCRIPTS / f"{self.script}.sbatch").read_text().splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith("python="))
        assert lines[first + 1].startswith("program=(")
        lines[first : first + 3] = [
            f"python={shlex.quote(self.python)}",
            f"program=({shlex.join(self.program)})",
            SIZES[self.script].format(per_node=self._ranks_per_node),
        ]
        copy = self.folder / f"{self.script}.sbatch"
        copy.write_text("\n".join([*lines, ""]))
        return str(copy)
