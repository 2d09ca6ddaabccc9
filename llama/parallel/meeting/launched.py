"""What a launcher told this process through its environment: which rank it is, and where to meet.

torchrun, `python -m launch`, mpirun, srun and a LeaderWorkerSet are understood. Reads a mapping and
nothing else: what it is told is checked against itself, not against any machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llama.errors import HardwareError
from llama.parallel.meeting.slurm import first_host, is_task_step, tasks_on

Source = Literal["torchrun", "openmpi", "hydra", "slurm", "lws"]
LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500
"""torchrun's own."""
_PORTS = range(20000, 40000)
_ADDR, _PORT = "MASTER_ADDR", "MASTER_PORT"
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Launched:
    """One rank of a job. `local_world_size` counts the ranks on its host, None when unknown.

    The store where all meet is at `master_addr`, hosted by the launcher or else by rank 0;
    `attempt` counts a launcher's restarts of the job.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    master_addr: str
    master_port: int
    source: Source = "torchrun"
    has_launcher_store: bool = False
    attempt: int = 0

    @property
    def master(self) -> str:
        return f"{self.master_addr}:{self.master_port}"

    @property
    def is_on_one_host(self) -> bool:
        return self.local_world_size == self.world_size

    @property
    def hosts_store(self) -> bool:
        """Whether this very process does."""
        return self.rank == 0 and not self.has_launcher_store

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Launched | None:
        """From the variables of the innermost launcher; None for a process by itself.

        The only task of a step, a job or a group is by itself too, except under torchrun. Raises
        HardwareError when a launcher's variables are incomplete or make no sense.
        """
        for find in (_by_torchrun, _by_open_mpi, _by_hydra, _by_slurm, _by_lws):
            found = find(environ)
            if found is not None:
                is_alone = found.world_size == 1 and found.source != "torchrun"
                return None if is_alone else found
        return None


def _by_torchrun(environ: Mapping[str, str]) -> Launched | None:
    """`python -m launch` gives the same variables. A bare MASTER_ADDR may be meant for others."""
    if not any(environ.get(name) for name in _TORCHRUN):
        return None
    _require(environ, *_TORCHRUN, _ADDR, _PORT, launcher="torchrun or `python -m launch`")
    local = "LOCAL_WORLD_SIZE"
    launched = _make(
        environ,
        "torchrun",
        names=_TORCHRUN,
        local_world_size=_number(environ, local) if environ.get(local) else None,
    )
    return replace(
        launched,
        has_launcher_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True),
        attempt=_number(environ, "TORCHELASTIC_RESTART_COUNT", default=0),
    )


def _by_open_mpi(environ: Mapping[str, str]) -> Launched | None:
    """Before SLURM: mpirun may start its daemons by srun, and ranks inherit their variables."""
    *names, local = (f"OMPI_COMM_WORLD_{it}" for it in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    if not any(environ.get(name) for name in names):
        return None
    _require(environ, *names, local, launcher="mpirun")
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or ""
    port = _PORTS[zlib.crc32(job.encode()) % len(_PORTS)] if job else DEFAULT_PORT
    size = _number(environ, local)
    return _make(environ, "openmpi", names=names, local_world_size=size, port=port)


def _by_hydra(environ: Mapping[str, str]) -> Launched | None:
    """mpiexec of MPICH and Intel MPI. SLURM may set PMI_* as well, but not MPI_LOCAL*."""
    names, local = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"), "MPI_LOCALNRANKS"
    telling = (names[2], local) if environ.get("SLURM_JOB_ID") else (*names, local)
    if not any(environ.get(name) for name in telling):
        return None
    _require(environ, *names, local, launcher="mpiexec")
    return _make(environ, "hydra", names=names, local_world_size=_number(environ, local))


def _by_slurm(environ: Mapping[str, str]) -> Launched | None:
    names, per_node = _SLURM, "SLURM_STEP_TASKS_PER_NODE"
    step_id = environ.get("SLURM_STEP_ID", "")
    if not is_task_step(step_id) or environ.get(names[1]) == "1":
        return None
    nodes = "SLURM_STEP_NODELIST" if environ.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    _require(environ, *names, per_node, "SLURM_JOB_ID", "SLURM_NODEID", nodes, launcher="srun")
    try:
        size = tasks_on(_number(environ, "SLURM_NODEID"), environ[per_node])
        host = first_host(environ[nodes])
    except ValueError as error:
        raise HardwareError(f"SLURM's variables make no sense: {error}") from error
    port = _PORTS[(_number(environ, "SLURM_JOB_ID") + int(step_id)) % len(_PORTS)]
    return _make(environ, "slurm", names=names, local_world_size=size, host=host, port=port)


def _by_lws(environ: Mapping[str, str]) -> Launched | None:
    """A pod of a Kubernetes LeaderWorkerSet counts as a host with one rank."""
    if not environ.get("LWS_WORKER_INDEX"):
        return None
    names, leader = ("LWS_WORKER_INDEX", "LWS_GROUP_SIZE"), "LWS_LEADER_ADDRESS"
    _require(environ, *names, leader, launcher="a LeaderWorkerSet")
    return _make(environ, "lws", names=names, local_world_size=1, host=environ[leader])


def _make(
    environ: Mapping[str, str],
    source: Source,
    *,
    names: Sequence[str],
    local_world_size: int | None,
    host: str | None = None,
    port: int = DEFAULT_PORT,
) -> Launched:
    """`names` are those of rank, world size and, unless it is 0, local rank.

    MASTER_ADDR and MASTER_PORT come before what was derived; a job on one host whose launcher
    hosts no store stays on loopback.
    """
    rank, size, local_rank = (*(_number(environ, name) for name in names), 0)[:3]
    if rank >= size:
        raise HardwareError(f"{names[0]} {rank} is outside {names[1]} {size}")
    if local_world_size is not None and not local_rank < local_world_size <= size:
        raise HardwareError(
            f"local rank {local_rank} of {local_world_size} ranks on its host does not fit "
            f"{names[1]} {size}"
        )
    if source != "torchrun" and local_world_size == size:
        host = LOOPBACK
    else:
        host = environ.get(_ADDR) or host
    if not host:
        raise HardwareError(
            f"{source} started {size} ranks on several hosts but does not say where they can meet; "
            "set MASTER_ADDR to the host of rank 0 on all of them"
        )
    port = _number(environ, _PORT, default=port)
    if not 0 < port < 2**16:
        raise HardwareError(f"MASTER_PORT {port} is no port; use 1 to 65535")
    return Launched(rank, size, local_rank, local_world_size, host, port, source)


def _require(environ: Mapping[str, str], *names: str, launcher: str) -> None:
    """Raise HardwareError that lists what is missing, unless all of `names` are set."""
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = ", ".join(name for name in names if name not in missing)
        raise HardwareError(
            f"the launch environment is incomplete: {present} set but {', '.join(missing)} "
            f"missing; start with {launcher}, or unset all of them to run one process"
        )


def _number(environ: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environ.get(name, "")
    if default is not None and not text:
        return default
    if not text.isdecimal():
        raise HardwareError(f"{name} must be a whole number, got {text!r}")
    return int(text)
