"""This process's place among the ranks, and its communicators: what every other part is given.

`initialize` turns what torchrun, a user's program or nobody set up into one ParallelContext;
`single` is one process by itself.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist

from llama.config import TIME_LIMITS, ParallelConfig
from llama.errors import PeerLostError, RankMismatchError, RankTimeoutError
from llama.log import get_logger
from llama.parallel import fairscale
from llama.parallel.agreement import check_agreement, differences, raise_together
from llama.parallel.backend import BackendChoice, choose, parse_device
from llama.parallel.comm import Communicator
from llama.parallel.device import DeviceFacts, probe
from llama.parallel.fingerprint import environment
from llama.parallel.groups import Communicators, GroupMaker, backend_of, try_all
from llama.parallel.layout import Coordinates, ParallelLayout
from llama.parallel.liveness.drain import EXIT_CODE, Drain
from llama.parallel.liveness.parent import end_with_launcher
from llama.parallel.liveness.vitals import ProcessFacts, Vitals
from llama.parallel.liveness.whereabouts import Phase, Whereabouts
from llama.parallel.mailbox import Mailbox
from llama.parallel.meeting.launched import Launched
from llama.parallel.meeting.rendezvous import (
    World,
    join,
    leave,
    meet,
    own_rank,
    share_through_store,
)
from llama.parallel.progress import Board
from llama.parallel.sharing import make_communicators
from llama.parallel.transport import TransportChoice, choose_transport
from llama.parallel.wish import resolve_layout, with_environment


@dataclass(frozen=True)
class ParallelContext:
    """One rank's view of the job.

    tp and pp carry activations between this rank and its peers; dp carries host values between
    replicas. `replica` (rank 0 leads), `local` (ranks that share this one's memory) and `world` are
    for control: CPU tensors, long patience. `transport` carries data between ranks of one host.
    """

    layout: ParallelLayout
    rank: int
    device: torch.device
    backend: BackendChoice
    transport: TransportChoice
    tp: Communicator
    pp: Communicator
    dp: Communicator
    replica: Communicator
    world: Communicator
    messages: Communicator
    local: Communicator
    local_world_size: int = 1
    load_timeout_s: float = TIME_LIMITS["load_timeout_s"]
    drain: Drain = field(repr=False, kw_only=True)
    _vitals: Vitals = field(repr=False, kw_only=True)
    _links: ExitStack = field(repr=False, kw_only=True)

    @cached_property
    def mailbox(self) -> Mailbox:
        """The replica's one mailbox: two on one group would take each other's messages."""
        return Mailbox(self.messages)

    @property
    def whereabouts(self) -> Whereabouts:
        """What this rank is doing, for its heartbeat: whoever begins something says so here."""
        return self._vitals.record.whereabouts

    @property
    def host(self) -> str:
        return socket.gethostname()

    def board(self) -> Board:
        """Where ranks tell each other how far they are. Every rank makes the n-th one alike."""
        return Board(self._vitals.record.store, rank=self.rank, size=self.layout.world_size)

    @property
    def coordinates(self) -> Coordinates:
        return self.layout.coordinates(self.rank)

    @property
    def is_first_stage(self) -> bool:
        return self.coordinates.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.coordinates.pp_rank == self.layout.pp_size - 1

    @property
    def is_leader(self) -> bool:
        """Whether this rank schedules for its replica."""
        return self.replica.rank == 0

    def agree(self, values: Mapping[str, object]) -> None:
        """Raise RankMismatchError on every rank unless all gave the same `values`. Collective.

        Values are JSON data, or anything whose repr says what matters. SystemExit on every rank
        once one was asked to stop, see `Drain`.
        """
        with self._hanging_up(), self.whereabouts.during(Phase.WAIT, "comparing settings"):
            leaving = self.drain.is_asked
            leaving = check_agreement(self.world, values, host=self.host, is_leaving=leaving)
        if leaving:
            raise SystemExit(EXIT_CODE)

    @contextmanager
    def together(self, phase: str) -> Iterator[None]:
        """Leave the body on every rank in the same way: all go on, or all raise. Collective.

        A rank whose body raised gets its own error, the others one of the same class that names it.
        `phase` ends the words "failed while ...". Raises PeerLostError when a rank dies.
        """
        error: Exception | None = None
        try:
            with self.whereabouts.during(Phase.LOAD, phase):
                yield
        except Exception as caught:
            error = caught
        with self._hanging_up(), self.whereabouts.during(Phase.WAIT, phase):
            raise_together(self.world, error, phase=phase, host=self.host)

    def fail(self, error: BaseException) -> None:
        """Leave word of `error` for the ranks that will miss this one, and hang up on them.

        They notice at once, whatever this process does next. After this the context is of no use.
        """
        self._vitals.fail(error)
        self._links.close()

    def close(self) -> None:
        """Give back what `initialize` made; groups that the program made stay. Idempotent."""
        self._vitals.close()
        self._links.close()

    @contextmanager
    def _hanging_up(self) -> Iterator[None]:
        """Once a peer is lost the rest must not wait for this rank either."""
        try:
            yield
        except (PeerLostError, RankTimeoutError) as error:
            self.fail(error)
            raise


def single(device: str | torch.device = "cpu") -> ParallelContext:
    """One process by itself: no process group, no port."""
    return _alone(torch.device(device), BackendChoice("none", "one process"))


def initialize(config: ParallelConfig | None = None) -> ParallelContext:
    """This process's context, with working links to all other ranks. Collective.

    A default process group or fairscale groups that the program has made are used as they are; else
    torchrun's variables say where to meet; without any, this is one process and needs no group.
    What `config` leaves open comes from LLAMA_TP_SIZE, LLAMA_PP_SIZE, LLAMA_DEVICE, LLAMA_BACKEND,
    LLAMA_TRANSPORT, then from fairscale's groups; then tp takes what pp leaves. A second call wraps
    the same groups. Over shared memory data goes beside groups, also those that the program made.

    Raises HardwareError (launch variables, device, backend, transport), UsageError (sizes),
    RankMismatchError (ranks asked for different things), RankTimeoutError and PeerLostError. From
    here on a process that was launched says of an uncaught error which rank it is, and exits with
    its status; its heartbeat ends it likewise when another rank is lost and it cannot notice.
    """
    launched = Launched.from_environment(os.environ)
    end_with_launcher(os.environ)
    vitals = Vitals(own_rank(launched))
    wish = with_environment(config or ParallelConfig(), os.environ)
    world = meet(launched, timeout_s=wish.limit_s("init_timeout_s"))
    if world is None:
        facts = probe(local_rank=None, cuda_index=parse_device(wish.device)[1])
        resolve_layout(wish, world_size=1, existing=None)
        kind, choice = choose([facts], device=wish.device, backend=wish.backend, is_alone=True)
        choose_transport([facts], kind=kind, asked=wish.transport)
        get_logger().log(choice.log_level(), "device %s: %s", kind, choice.reason)
        return _alone(_torch_device(kind, facts), choice)
    vitals.start(world, wish, launched=launched)
    drain = Drain(is_enabled=launched is not None)
    with vitals.failing_aloud(), ExitStack() as undo:
        vitals.meet(_check_wishes(world, wish))
        _, cuda_index = parse_device(wish.device)
        facts = probe(local_rank=world.local_rank, cuda_index=cuda_index)
        return _join(world, wish, facts, drain=drain, vitals=vitals, undo=undo)


def _join(
    world: World,
    wish: ParallelConfig,
    facts: DeviceFacts,
    *,
    drain: Drain,
    vitals: Vitals,
    undo: ExitStack,
) -> ParallelContext:
    """The context of one rank of `world`. What is made stays only if everything succeeds."""
    replies = share_through_store(world, json.dumps(asdict(facts)))
    all_facts = [DeviceFacts(**json.loads(reply)) for reply in replies]
    sizes, backend = None, wish.backend
    given = fairscale.existing_groups() if world.is_given else None
    if given is not None:
        sizes = dist.get_world_size(given.tp), dist.get_world_size(given.pp)
        backend = backend or backend_of(given.tp)
    layout = resolve_layout(wish, world_size=world.size, existing=sizes)
    kind, choice = choose(all_facts, device=wish.device, backend=backend)
    transport = choose_transport(all_facts, kind=kind, asked=wish.transport)
    device = _torch_device(kind, facts)
    group = layout.replica_group(world.rank)
    vitals.depend_on(group, computes_on_cpu=device.type == "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not world.is_given:
        everything = "cpu:gloo,cuda:nccl" if choice.name == "nccl" else "gloo"
        join(world, backend=everything, timeout_s=wish.timeout_s)
        undo.callback(leave)
    maker = GroupMaker(
        layout,
        world.rank,
        hosts=tuple(other.shared_memory for other in all_facts),
        config=wish,
        failure=vitals.record,
        undo=undo,
    )
    communicators, transport = make_communicators(maker, choice, transport)
    try_all(communicators, device=device)
    whereabouts = vitals.record.whereabouts
    whereabouts.phase, whereabouts.doing = Phase.IDLE, "running"
    log, words = get_logger().log, "device %s, backend %s: %s"
    log(choice.log_level(world.rank), words, device, choice.name, choice.reason)
    log(transport.log_level(world.rank), "transport %s: %s", transport.name, transport.reason)
    kept = undo.pop_all()
    # gloo aborts a process that exits with groups alive, now and then
    atexit.register(kept.close)
    vitals.leave_at_exit()
    return ParallelContext(
        layout=layout,
        rank=world.rank,
        device=device,
        backend=choice,
        transport=transport,
        **vars(communicators),
        local_world_size=sum(other.host == facts.host for other in all_facts),
        load_timeout_s=wish.limit_s("load_timeout_s"),
        drain=drain,
        _vitals=vitals,
        _links=kept,
    )


def _check_wishes(world: World, wish: ParallelConfig) -> list[ProcessFacts]:
    """Every rank's process, in rank order.

    Raises RankMismatchError unless all want the same, before any rank refuses its own wish.
    """
    kind = str(wish.device).partition(":")[0]  # each rank may ask for a GPU of its own
    values = {name: repr(value) for name, value in {**vars(wish), "device": kind}.items()}
    values |= environment()
    mine = {"host": socket.gethostname(), "values": values, "process": asdict(ProcessFacts.own())}
    replies = [json.loads(text) for text in share_through_store(world, json.dumps(mine))]
    if any(reply["values"] != values for reply in replies):
        raise RankMismatchError(differences(replies))
    return [ProcessFacts(**reply["process"]) for reply in replies]


def _torch_device(kind: str, facts: DeviceFacts) -> torch.device:
    return torch.device("cuda", facts.cuda_index) if kind == "cuda" else torch.device(kind)


def _alone(device: torch.device, choice: BackendChoice) -> ParallelContext:
    return ParallelContext(
        layout=ParallelLayout(),
        rank=0,
        device=device,
        backend=choice,
        transport=TransportChoice("none", "one process"),
        **vars(Communicators.of_one()),
        drain=Drain(is_enabled=False),
        _vitals=Vitals(None),
        _links=ExitStack(),
    )
