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

from llama.config import ParallelConfig
from llama.errors import PeerLostError, RankMismatchError, RankTimeoutError
from llama.log import get_logger, prefix_log
from llama.parallel import fairscale
from llama.parallel.agreement import check_agreement, differences, raise_together
from llama.parallel.backend import BackendChoice, choose, parse_device
from llama.parallel.comm import Communicator, SingleCommunicator
from llama.parallel.device import DeviceFacts, probe
from llama.parallel.failure import FailureRecord
from llama.parallel.groups import GroupMaker, transport_of, try_all
from llama.parallel.layout import Coordinates, ParallelLayout
from llama.parallel.mailbox import Mailbox
from llama.parallel.progress import Board
from llama.parallel.rendezvous import (
    Launched,
    World,
    join,
    leave,
    meet,
    own_rank,
    share_through_store,
)
from llama.parallel.uncaught import install_hook
from llama.parallel.wish import resolve_layout, with_environment


@dataclass(frozen=True)
class ParallelContext:
    """One rank's view of the job.

    tp and pp carry activations between this rank and its peers; dp carries host values between
    replicas. `replica` (rank 0 leads), `local` (ranks that share this one's memory) and `world` are
    for control: CPU tensors, long patience.
    """

    layout: ParallelLayout
    rank: int
    device: torch.device
    backend: BackendChoice
    tp: Communicator
    pp: Communicator
    dp: Communicator
    replica: Communicator
    world: Communicator
    messages: Communicator
    local: Communicator
    local_world_size: int = 1
    _failure: FailureRecord = field(repr=False, kw_only=True)
    _links: ExitStack = field(repr=False, kw_only=True)
    _marks: ExitStack = field(repr=False, kw_only=True)

    @cached_property
    def mailbox(self) -> Mailbox:
        """The replica's one mailbox: two on one group would take each other's messages."""
        return Mailbox(self.messages)

    @property
    def host(self) -> str:
        return socket.gethostname()

    def board(self) -> Board:
        """Where ranks tell each other how far they are. Every rank makes the n-th one alike."""
        return Board(self._failure.store, rank=self.rank, size=self.layout.world_size)

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

        Values are JSON data, or anything whose repr says what matters.
        """
        with self._hanging_up():
            check_agreement(self.world, values, host=self.host)

    @contextmanager
    def together(self, phase: str) -> Iterator[None]:
        """Leave the body on every rank in the same way: all go on, or all raise. Collective.

        A rank whose body raised gets its own error, the others one of the same class that names it.
        `phase` ends the words "failed while ...". Raises PeerLostError when a rank dies.
        """
        before, self._failure.phase = self._failure.phase, phase
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        with self._hanging_up():
            raise_together(self.world, error, phase=phase, host=self.host)
        self._failure.phase = before

    def fail(self, error: BaseException) -> None:
        """Leave word of `error` for the ranks that will miss this one, and hang up on them.

        They notice at once, whatever this process does next. After this the context is of no use.
        """
        self._failure.write(error)
        self._links.close()

    def close(self) -> None:
        """Give back what `initialize` made; groups that the program made stay. Idempotent."""
        self._links.close()
        self._marks.close()

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
    then from fairscale's groups; then tp takes what pp leaves. A second call wraps the same groups.

    Raises HardwareError (launch variables, device, backend), UsageError (sizes), RankMismatchError
    (ranks asked for different things), RankTimeoutError and PeerLostError. From here on a process
    that was launched says of an uncaught error which rank it is, and exits with the error's status.
    """
    launched = Launched.from_environment(os.environ)
    failure, marks = _mark(own_rank(launched))
    wish = with_environment(config or ParallelConfig(), os.environ)
    world = meet(launched, timeout_s=wish.init_timeout_s)
    if world is not None:
        failure.store = world.store
        _check_wishes(world, wish)
    _, cuda_index = parse_device(wish.device)
    facts = probe(local_rank=world.local_rank if world else None, cuda_index=cuda_index)
    if world is None:
        resolve_layout(wish, world_size=1, existing=None)
        kind, choice = choose([facts], device=wish.device, backend=wish.backend, is_alone=True)
        get_logger().info("device %s: %s", kind, choice.reason)
        return _alone(_torch_device(kind, facts), choice)
    with ExitStack() as undo:
        return _join(world, wish, facts, failure=failure, marks=marks, undo=undo)


def _mark(rank: int | None) -> tuple[FailureRecord, ExitStack]:
    """Have this process's last words and log lines name its rank; the stack takes that back."""
    host, marks = socket.gethostname(), ExitStack()
    failure = FailureRecord(None, rank=rank or 0, host=host)
    if rank is not None:
        marks.callback(install_hook(failure, rank=rank, host=host))
        marks.callback(prefix_log(rank, host))
    return failure, marks


def _join(
    world: World,
    wish: ParallelConfig,
    facts: DeviceFacts,
    *,
    failure: FailureRecord,
    marks: ExitStack,
    undo: ExitStack,
) -> ParallelContext:
    """The context of one rank of `world`. What is made stays only if everything succeeds."""
    replies = share_through_store(world, json.dumps(asdict(facts)))
    all_facts = [DeviceFacts(**json.loads(reply)) for reply in replies]
    sizes, backend = None, wish.backend
    given = fairscale.existing_groups() if world.is_given else None
    if given is not None:
        sizes = dist.get_world_size(given.tp), dist.get_world_size(given.pp)
        backend = backend or transport_of(given.tp)
    layout = resolve_layout(wish, world_size=world.size, existing=sizes)
    kind, choice = choose(all_facts, device=wish.device, backend=backend)
    device = _torch_device(kind, facts)
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
        failure=failure,
        undo=undo,
    )
    communicators = maker.make(choice)
    try_all(communicators, device=device)
    failure.phase = "running"
    get_logger().info("device %s, backend %s: %s", device, choice.name, choice.reason)
    kept = undo.pop_all()
    # gloo aborts a process that exits with groups alive, now and then
    atexit.register(kept.close)
    return ParallelContext(
        layout=layout,
        rank=world.rank,
        device=device,
        backend=choice,
        **vars(communicators),
        local_world_size=sum(other.host == facts.host for other in all_facts),
        _failure=failure,
        _links=kept,
        _marks=marks,
    )


def _check_wishes(world: World, wish: ParallelConfig) -> None:
    """Raise RankMismatchError unless all want the same, before any rank refuses its own wish."""
    kind = str(wish.device).partition(":")[0]  # each rank may ask for a GPU of its own
    values = {name: repr(value) for name, value in {**vars(wish), "device": kind}.items()}
    mine = json.dumps({"host": socket.gethostname(), "values": values})
    replies = [json.loads(text) for text in share_through_store(world, mine)]
    if any(reply["values"] != values for reply in replies):
        raise RankMismatchError(differences(replies))


def _torch_device(kind: str, facts: DeviceFacts) -> torch.device:
    return torch.device("cuda", facts.cuda_index) if kind == "cuda" else torch.device(kind)


def _alone(device: torch.device, choice: BackendChoice) -> ParallelContext:
    nobody = SingleCommunicator()
    return ParallelContext(
        layout=ParallelLayout(),
        rank=0,
        device=device,
        backend=choice,
        tp=nobody,
        pp=nobody,
        dp=nobody,
        replica=nobody,
        world=nobody,
        messages=nobody,
        local=nobody,
        _failure=FailureRecord(None, rank=0, host=socket.gethostname()),
        _links=ExitStack(),
        _marks=ExitStack(),
    )
