"""From what the user asked for to running ranks, and from how they ended to one exit status.

Knows the machine and the rank layout. What a rank does with its place is up to the program it runs.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launch import console, env
from launch.hardware import Machine, probe
from llama.config import ParallelConfig
from llama.errors import LlamaError, PeerLostError, UsageError
from llama.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from launch.agent import RankFailure


@dataclass(frozen=True)
class LaunchRequest:
    """`program` is what follows `python`: ("script.py", ...) or ("-m", "module", ...).

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
    `forward_interrupt` gives Ctrl-C to rank 0 instead of ending the job. Raises UsageError and
    HardwareError.
    """
    machine = probe()
    job = plan(request, machine)
    show(job, host=machine.host)
    from launch.agent import JobStopped, run_ranks

    os.environ.update(job.settings)  # ranks inherit this process's environment
    command = (sys.executable, "-u", *job.program)
    try:
        failures = run_ranks(command, job.n_ranks, forward_interrupt=forward_interrupt)
    except JobStopped as stopped:
        console.say(f"stopped by {stopped.signum.name}; every rank has ended")
        return 128 + stopped.signum
    if not failures:
        return 0
    cause = first_cause(failures)
    console.say(describe(cause, host=machine.host))
    return cause.exit_code if cause.exit_code > 0 else 128 - cause.exit_code


def plan(request: LaunchRequest, machine: Machine) -> Job:
    """Sizes, settings, expectations. Raises UsageError or HardwareError for what cannot be met."""
    from llama.parallel.backend import choose
    from llama.parallel.context import resolve_layout

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
        ),
        devices=tuple(
            f"cuda:{fact.cuda_index}" if indexed else request.device or kind for fact in facts
        ),
        backend=choice.name,
        reason=choice.reason,
    )


def count_ranks(request: LaunchRequest, machine: Machine) -> int:
    """As asked; else what --tp and --pp need; else one a GPU, and one where there is none."""
    if isinstance(request.nproc, int):
        return request.nproc
    if request.nproc is None and (request.tp or request.pp):
        return (request.tp or 1) * (request.pp or 1)
    return machine.n_gpus or 1


def show(job: Job, *, host: str) -> None:
    """Print where every rank will be, and what its tensors are expected to travel by."""
    layout = job.layout
    n_threads = job.settings.get(env.THREADS, os.environ.get(env.THREADS))
    sizes = f"tp {layout.tp_size} x pp {layout.pp_size}"
    if layout.dp_size > 1:
        sizes += f" x {layout.dp_size} replicas"
    console.show_table(
        f"{job.n_ranks} rank(s) on {host}, {n_threads} thread(s) each; expected: {sizes}, "
        f"backend {job.backend} ({job.reason})",
        ["rank", "device", "pp_rank", "tp_rank", "replica"],
        [
            [str(entry) for entry in (rank, device, at.pp_rank, at.tp_rank, at.dp_rank)]
            for rank, device in enumerate(job.devices)
            for at in [layout.coordinates(rank)]
        ],
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
