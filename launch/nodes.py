"""How the launchers of a job's machines find each other, and who runs how many ranks.

Node 0 hosts the store that all launchers and ranks share; the others come to it. What ranks do
there is not known here; launch/node_watch.py sees whether the others go on.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING

from launch.meeting import Meeting, Node, Progress, Say, Terms
from launch.node_watch import NodeWatch
from llama.errors import HardwareError, UsageError
from llama.parallel.meeting.addresses import address_for_others, address_towards, numeric

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500
"""torchrun's."""


@dataclass(frozen=True)
class NodeRequest:
    """Which of how many machines this is, and where node 0 can be found.

    Launchers of one job have the same `job_id`, any text. Raises UsageError.
    """

    nnodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None
    master_port: int | None = None
    job_id: str = ""

    def __post_init__(self) -> None:
        if self.nnodes < 1:
            raise UsageError(f"--nnodes must be at least 1, got {self.nnodes}")
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node_rank must be between 0 and {self.nnodes - 1} with --nnodes {self.nnodes}, "
                f"got {self.node_rank}"
            )
        if self.master_port is not None and not 0 < self.master_port < 65536:
            raise UsageError(f"--master_port must be in 1 ... 65535, got {self.master_port}")
        if self.nnodes > 1 and not self.master_addr:
            raise UsageError(
                f"--nnodes {self.nnodes} needs --master_addr, the address of the machine that "
                "runs node 0"
            )


class Nodes:
    """The machines of one job after they have met; a context manager that leaves the meeting.

    `store` is where ranks meet, and `master_addr` (numeric), `master_port` is where it listens: to
    be asked for once they have been started, since a fork and its threads do not mix.
    `interface` leads to the other machines. `nprocs` and `hosts` are in the order of node ranks;
    those of this node begin at `first_rank`. `run_id` is one for all nodes, and new every time.
    """

    def __init__(
        self,
        own: int,
        nodes: Sequence[Node],
        *,
        open_store: Callable[[], Store],
        place: tuple[str, int],
        interface: str,
        run_id: str,
        watch: NodeWatch | None,
        listener: socket.socket | None = None,
    ) -> None:
        self._open_store = open_store
        self._listener = listener
        self.master_addr, self.master_port = place
        self.interface = interface
        self.run_id = run_id
        self.nprocs = tuple(node.nproc for node in nodes)
        self.hosts = tuple(node.host for node in nodes)
        self.first_rank = sum(self.nprocs[:own])
        self.world_size = sum(self.nprocs)
        self._watch = watch

    @cached_property
    def store(self) -> Store:
        """Raises HardwareError when this machine does not reach its own address."""
        return self._open_store()

    def lost(self) -> str | None:
        """Which other launcher is gone or has failed, in words; None while all is well.

        Silence is counted from call to call, so call it often; a second without is not counted.
        """
        return self._watch.lost() if self._watch else None

    def finish(self, exit_code: int, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Tell the others how this node ended; node 0, which hosts the store, waits for them.

        It waits as long as they go on after a good end, 15 s after a bad one, and until `hurry`
        says so.
        """
        if self._watch:
            self._watch.finish(exit_code, hurry=hurry)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch:
            self._watch.close()
        if self._listener:
            self._listener.close()  # it is the store's by now, unless nobody asked for that


def meet_nodes(request: NodeRequest, *, nproc: int, timeout_s: float, say: Say) -> Nodes:
    """Find the launchers of the other nodes; at once when there are none. This one runs `nproc`.

    `say` is told every 10 s who is missing. Raises HardwareError when the address or the port of
    node 0 cannot be used, RankMismatchError when this launcher and another are not of one job or
    both take one place in it, RankTimeoutError when not all come in `timeout_s`, and PeerLostError
    when node 0 goes away meanwhile.
    """
    from llama.parallel.meeting.rendezvous import as_ranks_see

    deadline = time.monotonic() + timeout_s
    own = Node(socket.gethostname(), os.getpid(), nproc, nonce=uuid.uuid4().hex)
    if request.nnodes == 1:
        return _alone(request, own, timeout_s=timeout_s)
    port = request.master_port or DEFAULT_PORT
    terms = Terms(request.job_id, request.nnodes, run_id=own.nonce)
    progress = Progress(say)
    if request.node_rank == 0:
        ip, interface, store = _host(request, port, timeout_s=timeout_s)
        say(f"node 0 of {request.nnodes} waits for the others at {show_place(ip, port)}")
    else:
        ip, interface, store = _reach(request, port, deadline=deadline, progress=progress)
    meeting = Meeting(store, node_rank=request.node_rank, own=own, where=show_place(ip, port))
    if request.node_rank == 0:
        meeting.set_terms(terms)
    else:
        terms = meeting.check_terms(terms)
    meeting.take_place()
    nodes = meeting.await_all(request.nnodes, deadline=deadline, progress=progress)
    hosts = [node.host for node in nodes]
    return Nodes(
        request.node_rank,
        nodes,
        open_store=lambda: as_ranks_see(store),
        place=(ip, port),
        interface=interface,
        run_id=terms.run_id,
        watch=NodeWatch(store.clone(), own=request.node_rank, hosts=hosts),  # type: ignore[attr-defined]
    )


def address_of_node_0(host: str) -> str:
    """Numeric, as node 0 finds it: two launchers may try the same machine by its own name."""
    ip = numeric(host)
    is_loopback = ip_address(ip.partition("%")[0]).is_loopback
    return address_for_others(host).ip if is_loopback else ip


def show_place(ip: str, port: int) -> str:
    """'10.0.0.1:29500', '[fd00::1]:29500'."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _alone(request: NodeRequest, own: Node, *, timeout_s: float) -> Nodes:
    from llama.parallel.meeting.rendezvous import as_ranks_see
    from llama.parallel.meeting.stores import listen, serve_store

    listener = listen(LOOPBACK, request.master_port or 0)
    port = listener.getsockname()[1]
    return Nodes(
        0,
        [own],
        open_store=lambda: as_ranks_see(serve_store(listener, LOOPBACK, timeout_s=timeout_s)),
        place=(LOOPBACK, port),
        interface=address_towards(LOOPBACK).interface,
        run_id=own.nonce,
        watch=None,
        listener=listener,
    )


def _host(request: NodeRequest, port: int, *, timeout_s: float) -> tuple[str, str, TCPStore]:
    """Of node 0: the address where it listens, the interface that has it, the store."""
    from llama.parallel.meeting.stores import host_store

    at = address_for_others(request.master_addr or "")
    return at.ip, at.interface, host_store(at.ip, port, timeout_s=timeout_s)


def _reach(
    request: NodeRequest, port: int, *, deadline: float, progress: Progress
) -> tuple[str, str, TCPStore]:
    """Of any other node: the address of node 0, the interface that leads there, its store."""
    from llama.parallel.meeting.stores import reach_store

    who = f"node {request.node_rank} waits for node 0"
    while True:
        try:
            ip = address_of_node_0(request.master_addr or "")
            break
        except HardwareError as error:  # in Kubernetes a name may be known only once its pod runs
            if time.monotonic() > deadline:
                raise
            progress(f"{who}: {error}")
        time.sleep(1.0)
    place = show_place(ip, port)
    store = reach_store(
        ip,
        port,
        timeout_s=max(1.0, deadline - time.monotonic()),
        waiting=lambda problem: progress(f"{who} at {place} ({problem})"),
    )
    return ip, address_towards(ip).interface, store
