"""A request made definite: sizes, environment, and what is expected of every rank.

Starts nothing. What a rank does with its place is up to the program it runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

from launch import console, env
from launch.hardware import Machine, threads_each
from launch.nodes import DEFAULT_PORT, NodeRequest, Nodes
from launch.request import LaunchRequest
from llama.parallel.layout import ParallelLayout

MOST_RANKS_PER_CPU = 2


@dataclass(frozen=True)
class Place:
    """Where a rank is expected: `node` is its machine in words."""

    node: str
    device: str


@dataclass(frozen=True)
class Job:
    """`settings` is added to the environment of every one of the `n_local` ranks of this machine.

    `places` has one entry for every rank of the job; like `backend`, `reason` and `transport` it is
    what the ranks are expected to choose.
    """

    request: LaunchRequest
    n_local: int
    layout: ParallelLayout
    settings: dict[str, str]
    places: tuple[Place, ...]
    backend: str
    reason: str
    transport: str

    @property
    def as_torchrun(self) -> str:
        """A shell line that starts the same ranks of this machine without this launcher."""
        nodes = self.request.nodes
        torchrun = ["torchrun", *_where(nodes), f"--nproc-per-node={self.n_local}"]
        if self.request.log_dir is not None:
            torchrun += [f"--log-dir={self.request.log_dir}", "--tee=3"]
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return shlex.join([*settings, *torchrun, *self.request.program])


def _where(nodes: NodeRequest) -> list[str]:
    if nodes.nnodes == 1:
        return ["--standalone"]
    return [
        f"--nnodes={nodes.nnodes}",
        f"--node-rank={nodes.node_rank}",
        f"--master-addr={nodes.master_addr}",
        f"--master-port={nodes.master_port or DEFAULT_PORT}",
    ]


def plan(
    request: LaunchRequest,
    machine: Machine,
    *,
    met: Nodes | None = None,
) -> Job:
    """Raises UsageError or HardwareError for what cannot be met.

    `met` are the machines of the job once they have met; before that, the others are expected to
    be like this one.
    """
    from llama.parallel.backend import choose
    from llama.parallel.transport import choose_transport
    from llama.parallel.wish import resolve_layout

    n_local = request.count_ranks(machine.n_gpus)
    nnodes = request.nodes.nnodes
    nprocs = met.nprocs if met else (n_local,) * nnodes
    hosts = met.hosts if met else tuple(_unmet(request, machine, node) for node in range(nnodes))
    facts = [
        fact
        for host, n_ranks in zip(hosts, nprocs, strict=True)
        for fact in machine.expected_facts(n_ranks, host=host)
    ]
    interface = machine.loopback if nnodes == 1 else met.interface if met else None
    kind, choice = choose(facts, device=request.device, backend=request.backend)
    transport = choose_transport(facts, kind=kind, asked=request.transport)
    indexed = kind == "cuda" and request.device in (None, "cuda")
    return Job(
        request=request,
        n_local=n_local,
        layout=resolve_layout(request.parallel_config, world_size=len(facts), existing=None),
        settings=env.settings(
            os.environ,
            tp_size=request.tp,
            pp_size=request.pp,
            backend=request.backend,
            device=request.device,
            transport=request.transport,
            limits_s=request.limits_s,
            log_dir=request.log_dir,
            n_threads=threads_each(machine.n_cpus, n_local),
            interface=interface,
            optimize=sys.flags.optimize,
        ),
        places=tuple(
            Place(
                fact.host,
                f"cuda:{fact.cuda_index}" if indexed else request.device or kind,
            )
            for fact in facts
        ),
        backend=choice.name,
        reason=choice.reason,
        transport=transport.name,
    )


def _unmet(request: LaunchRequest, machine: Machine, node: int) -> str:
    return machine.host if node == request.nodes.node_rank else f"node {node}"


def show(job: Job, machine: Machine) -> None:
    """Print where every rank will be, what its tensors travel by, and what is wrong here."""
    layout = job.layout
    n_threads = job.settings.get(env.THREADS, os.environ.get(env.THREADS))
    sizes = f"tp {layout.tp_size} x pp {layout.pp_size}"
    if layout.dp_size > 1:
        sizes += f" x {layout.dp_size} replicas"
    has_nodes = job.request.nodes.nnodes > 1
    where = f"{job.request.nodes.nnodes} nodes" if has_nodes else machine.host
    columns = ["rank", "device", "pp_rank", "tp_rank", "replica"]
    console.show_table(
        f"{layout.world_size} rank(s) on {where}, {n_threads} thread(s) each; "
        f"expected: {sizes}, backend {job.backend} ({job.reason}), transport {job.transport}",
        [*columns, "host"] if has_nodes else columns,
        [
            [
                *(str(entry) for entry in (rank, place.device, at.pp_rank, at.tp_rank, at.dp_rank)),
                *([place.node] if has_nodes else []),
            ]
            for rank, place in enumerate(job.places)
            for at in [layout.coordinates(rank)]
        ],
    )
    for warning in warnings(job, machine):
        console.say(f"warning: {warning}")


def warnings(job: Job, machine: Machine) -> list[str]:
    """What the user should know before the ranks start: slow, or not on the devices there are."""
    found = []
    if job.request.device is None:
        found += [
            f"{problem}; the ranks will compute on the CPU" for problem in machine.gpu_problems
        ]
    most = MOST_RANKS_PER_CPU * machine.n_cpus
    if job.n_local > most:
        found.append(
            f"{job.n_local} ranks share {machine.n_cpus} core(s); each waits for all the others at "
            f"every layer, so more than {most} are slow"
        )
    return found
