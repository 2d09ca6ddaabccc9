"""From what the user asked for to running ranks, and from how they ended to one exit status.

Knows the machine and the rank layout. What a rank does with its place is up to the program it runs.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from launch import console, env
from launch.hardware import Machine, probe
from launch.program import check_program
from llama.config import ParallelConfig
from llama.errors import LlamaError, PeerLostError, UsageError
from llama.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from launch.agent import RankFailure


MOST_RANKS_PER_CPU = 2
PIPE_CLOSED = 128 + 13
"""Exit status of a program whose output nobody reads on, as of one that SIGPIPE ended."""


@dataclass(frozen=True)
class LaunchRequest:
    """`program` is what follows `python`: ("script.py", ...), ("-m", "module", ...) or
    ("-c", "code", ...).

    None leaves a choice open: `nproc` to the launcher, the rest to the ranks.
    """

    program: tuple[str, ...]
    nproc: int | Literal["auto"] | None = None
    tp: int | None = None
    pp: int | None = None
    backend: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("nproc", "tp", "pp"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Job:
    """A request made definite for one machine.

    `settings` is added to every rank's environment. `devices` has one entry a rank; like `backend`
    and `reason` it is what the ranks are expected to choose.
    """

    program: tuple[str, ...]
    layout: ParallelLayout
    settings: dict[str, str]
    devices: tuple[str, ...]
    backend: str
    reason: str

    @property
    def n_ranks(self) -> int:
        return self.layout.world_size

    @property
    def as_torchrun(self) -> str:
        """A shell line that starts the same ranks without this launcher."""
        torchrun = ["torchrun", "--standalone", f"--nproc-per-node={self.n_ranks}"]
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return shlex.join([*settings, *torchrun, *self.program])


def launch(request: LaunchRequest, *, forward_interrupt: bool = False) -> int:
    """Run the request's program on its ranks and wait; returns the exit status of the whole.

    0 when every rank ended well, else that of the rank that failed first; 128 + n for a signal n.
    With `forward_interrupt`, rank 0 may ask for Ctrl-C (env.READY_FILE) instead of its ending the
    job. Raises UsageError and HardwareError.
    """
    machine = probe()
    job = plan(request, machine)
    check_program(request.program)
    show(job, machine)
    from launch.agent import JobStopped, run_ranks

    command = (sys.executable, "-u", *job.program)
    os.environ.update(job.settings)  # ranks inherit this process's environment
    with TemporaryDirectory() if forward_interrupt else nullcontext() as folder:
        ready_file = None if folder is None else Path(folder, "ready")
        if ready_file is not None:
            os.environ[env.READY_FILE] = str(ready_file)
        try:
            failures = run_ranks(command, job.n_ranks, ready_file=ready_file)
        except JobStopped as stopped:
            console.say(f"stopped by {stopped.signum.name}; every rank has ended")
            return 128 + stopped.signum
    if not failures:
        return 0
    cause = first_cause(failures)
    if cause.exit_code != PIPE_CLOSED:
        console.say(describe(cause, host=machine.host))
    return cause.exit_code if cause.exit_code > 0 else 128 - cause.exit_code


def plan(request: LaunchRequest, machine: Machine) -> Job:
    """Sizes, settings, expectations. Raises UsageError or HardwareError for what cannot be met."""
    from llama.parallel.backend import choose
    from llama.parallel.wish import resolve_layout

    n_ranks = count_ranks(request, machine)
    sizes = ParallelConfig(tp_size=request.tp, pp_size=request.pp)
    facts = machine.expected_facts(n_ranks)
    kind, choice = choose(facts, device=request.device, backend=request.backend)
    indexed = kind == "cuda" and request.device in (None, "cuda")
    return Job(
        program=request.program,
        layout=resolve_layout(sizes, world_size=n_ranks, existing=None),
        settings=env.settings(
            os.environ,
            tp_size=request.tp,
            pp_size=request.pp,
            backend=request.backend,
            device=request.device,
            n_threads=max(1, machine.n_cpus // n_ranks),
            loopback=machine.loopback,
            optimize=sys.flags.optimize,
        ),
        devices=tuple(
            f"cuda:{fact.cuda_index}" if indexed else request.device or kind for fact in facts
        ),
        backend=choice.name,
        reason=choice.reason,
    )


def count_ranks(request: LaunchRequest, machine: Machine) -> int:
    """As asked; else what --tp and --pp need; else one a GPU, and one where there is none.

    "auto" is one a GPU, and where there is none what --tp and --pp need.
    """
    if isinstance(request.nproc, int):
        return request.nproc
    is_sized = request.tp is not None or request.pp is not None
    if machine.n_gpus and not (is_sized and request.nproc is None):
        return machine.n_gpus
    return (request.tp or 1) * (request.pp or 1)


def show(job: Job, machine: Machine) -> None:
    """Print where every rank will be, what its tensors travel by, and whether cores are short."""
    layout = job.layout
    n_threads = job.settings.get(env.THREADS, os.environ.get(env.THREADS))
    sizes = f"tp {layout.tp_size} x pp {layout.pp_size}"
    if layout.dp_size > 1:
        sizes += f" x {layout.dp_size} replicas"
    console.show_table(
        f"{job.n_ranks} rank(s) on {machine.host}, {n_threads} thread(s) each; expected: {sizes}, "
        f"backend {job.backend} ({job.reason})",
        ["rank", "device", "pp_rank", "tp_rank", "replica"],
        [
            [str(entry) for entry in (rank, device, at.pp_rank, at.tp_rank, at.dp_rank)]
            for rank, device in enumerate(job.devices)
            for at in [layout.coordinates(rank)]
        ],
    )
    if job.n_ranks > MOST_RANKS_PER_CPU * machine.n_cpus:
        console.say(
            f"warning: {job.n_ranks} ranks share {machine.n_cpus} core(s); each waits for all the "
            f"others at every layer, so more than {MOST_RANKS_PER_CPU * machine.n_cpus} are slow"
        )


def first_cause(failures: Sequence[RankFailure]) -> RankFailure:
    """The failure to report: ranks that only lost a peer, or were ended with the job, come last."""
    consequences = (PeerLostError.exit_code, -signal.SIGTERM)
    return min(failures, key=lambda f: (f.exit_code in consequences, f.time_s, f.rank))


def describe(failure: RankFailure, *, host: str) -> str:
    """One line on how the rank ended."""
    who = f"rank {failure.rank} ({host})"
    if failure.exit_code < 0:
        names = {known.value: known.name for known in signal.Signals}
        name = names.get(-failure.exit_code, f"signal {-failure.exit_code}")
        hint = "; if nobody did that, it ran out of memory" if name == "SIGKILL" else ""
        return f"{who} was killed by {name}{hint}"
    meaning = {error.exit_code: error.__name__ for error in LlamaError.__subclasses__()}
    meaning[LlamaError.exit_code] = LlamaError.__name__
    known = meaning.get(failure.exit_code)
    return f"{who} exited with {failure.exit_code}" + (f" ({known})" if known else "")
