"""All communicators of one rank: over shared memory where that is the choice, axis by axis.

An axis within one host takes its memory, one that spans hosts with several ranks each takes both.
All ranks of the job get them or none does. What shared memory is, `llama.parallel.shm` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import chain

from llama.errors import HardwareError
from llama.parallel.agreement import share_texts
from llama.parallel.backend import BackendChoice
from llama.parallel.comm import Communicator
from llama.parallel.groups import Communicators, GroupMaker
from llama.parallel.hierarchical import HierarchicalCommunicator
from llama.parallel.shm.connect import connect
from llama.parallel.transport import TransportChoice


def make_communicators(
    maker: GroupMaker, backend: BackendChoice, transport: TransportChoice
) -> tuple[Communicators, TransportChoice]:
    """Connected but untried, and the transport that they have got. Collective.

    Raises what `GroupMaker.make` raises, and HardwareError where shared memory was asked for and
    cannot be had.
    """
    plain = maker.make(backend)
    if transport.name == "shm":
        try:
            return Communicators(**_share_all(maker, plain)), transport
        except HardwareError as problem:
            transport = transport.instead(problem)
    plain |= {axis: maker.over_gloo(axis) for axis in ("messages", "local")}
    return Communicators(**plain), transport


def _share_all(maker: GroupMaker, plain: Mapping[str, Communicator]) -> dict[str, Communicator]:
    """The communicators of every axis. Collective.

    Raises HardwareError on every rank when any could not share.
    """
    sharing = _Sharing(maker, plain)
    found = {axis: sharing.over(axis) for axis in ("world", "messages", "local", "tp", "pp", "dp")}
    found["replica"] = found["world"]
    if plain["replica"] is not plain["world"]:
        found["replica"] = sharing.over("replica")
    problems = share_texts(plain["world"], sharing.problem)
    problem = next(filter(None, problems), None)
    if problem is not None:
        sharing.undo.close()
        raise HardwareError(problem)
    maker.undo.callback(sharing.undo.close)
    return found


class _Sharing:
    """One rank's part in it; after a first `problem` it still makes every call of the others."""

    def __init__(self, maker: GroupMaker, plain: Mapping[str, Communicator]) -> None:
        self._maker = maker
        self._plain = plain
        self.problem = ""
        self.undo = ExitStack()

    def over(self, axis: str) -> Communicator:
        """This rank's communicator of one axis: of one host, or of several, or as it is."""
        maker, own = self._maker, self._maker.group_of(axis)
        groups = {ranks: maker.by_host(ranks) for ranks in maker.groups_of(axis)}
        if all(len(hosts) == 1 for hosts in groups.values()):
            return self._connect(axis, self._first_contact(axis), own)
        whole = self._plain.get(axis) or maker.over_gloo(axis)
        hosts = groups[own]
        contact = maker.over_gloo(axis, chain(*groups.values()))
        own_host = next(host for host in hosts if maker.rank in host)
        inside = self._connect(axis, contact, own_host)
        leaders = [
            tuple(host[0] for host in hosts)
            for ranks, hosts in groups.items()
            if 1 < len(hosts) < len(ranks)
        ]
        between = maker.over_gloo(axis, leaders)
        if len(hosts) == 1:
            return inside
        if len(hosts) == len(own):
            return whole
        return HierarchicalCommunicator(
            whole,
            inside=inside,
            between=between if inside.rank == 0 else None,
            hosts=[[own.index(rank) for rank in host] for host in hosts],
        )

    def _first_contact(self, axis: str) -> Communicator:
        """Over gloo, of ranks of one host that are all those of this rank's group."""
        twin = {"messages": "replica", "local": "world"}.get(axis, axis)
        comm = self._plain[twin]
        return comm if comm.size == len(self._maker.group_of(axis)) else self._maker.over_gloo(axis)

    def _connect(self, axis: str, contact: Communicator, ranks: tuple[int, ...]) -> Communicator:
        maker = self._maker
        if contact.size == 1:
            return contact
        try:
            comm = connect(
                contact,
                axis=axis,
                timeout_s=maker.patience_s(axis),
                failure=maker.failure,
                global_ranks=ranks,
                host_ranks=len(maker.group_of("local")),
            )
        except HardwareError as problem:
            self.problem = self.problem or str(problem)
            return contact
        self.undo.callback(comm.close)
        return comm
