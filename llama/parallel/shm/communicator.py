"""A Communicator over shared memory, for ranks of one host whose tensors are on the CPU.

Tensors elsewhere, and strided ones, are staged as over gloo. It knows what a peer that does not
come means (late, gone, hung up, at odds); how bytes travel is the channel's business.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from llama.errors import LlamaError, PeerLostError, RankMismatchError, RankTimeoutError
from llama.parallel.calls import CallMarks
from llama.parallel.comm import Communicator, Work
from llama.parallel.liveness.failure import FailureRecord
from llama.parallel.shm.channel import Attempt, PythonChannel
from llama.parallel.shm.native import make_channel
from llama.parallel.shm.peers import PeerProcesses
from llama.parallel.shm.ring import Message
from llama.parallel.shm.segment import Segment
from llama.parallel.shm.sender import Parcel, Sender
from llama.parallel.shm.signature import describe_signature, signature_of
from llama.parallel.shm.waiting import PATIENCE_US, Status
from llama.parallel.shm.works import Receiving, Reducing, Sending


class _Sent:
    """A message that lies in its ring."""

    def wait(self) -> None:
        pass


class ShmCommunicator(Communicator):
    """Rank `rank` of those that map `segment`, as the axis named `axis`.

    `timeout_s` bounds every call. `peers` are the processes of all ranks, 0 for one that cannot be
    watched. `native` False means Python although C could be had; both understand each other.
    `is_crowded`: there are more ranks than cores.
    """

    def __init__(
        self,
        segment: Segment,
        *,
        axis: str,
        rank: int,
        global_ranks: Sequence[int],
        timeout_s: float,
        failure: FailureRecord | None = None,
        peers: Sequence[int] = (),
        native: bool | None = None,
        is_crowded: bool = False,
    ) -> None:
        self.axis = axis
        self._rank = rank
        self._global_ranks = tuple(global_ranks)
        self._size = len(self._global_ranks)
        self.timeout_s = timeout_s
        self._marks = CallMarks(axis, rank=rank, global_ranks=global_ranks, failure=failure)
        self._processes = PeerProcesses(peers)
        self._channel = make_channel(segment, rank, is_crowded=is_crowded, native=native)
        own = make_channel(segment, rank, is_crowded=is_crowded, native=native)
        self._sender = Sender(own)
        self._reducing: deque[Reducing] = deque()
        self._receiving: dict[int, deque[Receiving]] = {}
        self._pid = os.getpid()
        self._why_closed = ""

    def close(self) -> None:
        """Hang up: peers that wait for this rank, now or later, lose it at once. Idempotent.

        The memory goes when nobody refers to this any more. A forked child hangs up on nobody.
        """
        if os.getpid() != self._pid:
            return
        self._hang_up("was closed; build a new engine")
        self._sender.close()
        self._processes.close()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_native(self) -> bool:
        """Whether this rank's side is compiled."""
        return self._channel.is_native

    def all_reduce(self, x: Tensor) -> Tensor:
        ready = _ready(x)
        self._run("all_reduce", self._begin().all_reduce(ready))
        return x if ready is x else x.copy_(ready)

    def all_reduce_async(self, x: Tensor) -> Work:
        self._check()
        ready = _ready(x)
        work = Reducing(self._reduce_up_to, self._channel.all_reduce(ready), ready=ready, out=x)
        self._reducing.append(work)
        if len(self._reducing) == 1:
            self._channel.pace.patience_us = 0
            try:
                if work.attempt() == Status.DONE:
                    self._reducing.popleft().deliver()
            finally:
                self._channel.pace.patience_us = PATIENCE_US
        return work

    def _reduce_up_to(self, last: Reducing | None = None) -> None:
        """Finish the sums under way, in the order in which they began."""
        while self._reducing and not (last and last.is_done):
            self._run("all_reduce", self._reducing[0].attempt)
            self._reducing.popleft().deliver()

    def all_gather(self, x: Tensor, *, dim: int = -1) -> Tensor:
        ready = _ready(x)
        parts = torch.empty((self._size, ready.numel()), dtype=x.dtype)
        self._run("all_gather", self._begin().gather(ready, parts, dst=None))
        return _joined(parts, x, dim)

    def gather(self, x: Tensor, *, dst: int = 0, dim: int = -1) -> Tensor | None:
        ready = _ready(x)
        parts = None
        if dst == self._rank:
            parts = torch.empty((self._size, ready.numel()), dtype=x.dtype)
        self._run("gather", self._begin().gather(ready, parts, dst=dst))
        return None if parts is None else _joined(parts, x, dim)

    def broadcast(self, x: Tensor, *, src: int = 0) -> Tensor:
        ready = _ready(x)
        self._run("broadcast", self._begin().broadcast(ready, src=src))
        return x if ready is x or src == self._rank else x.copy_(ready)

    def barrier(self) -> None:
        self._run("barrier", self._begin().barrier())

    def isend(self, x: Tensor, dst: int) -> Work:
        self._check()
        ready = _ready(x)
        message = _message(ready, dst)
        if self._sender.is_busy(dst):
            return Sending(self._finish_sending, self._sender.submit(message), ready)
        self._channel.pace.patience_us = 0
        try:
            status = self._channel.push(message)
        finally:
            self._channel.pace.patience_us = PATIENCE_US
        if status == Status.DONE:
            return _Sent()
        return Sending(self._finish_sending, self._sender.submit(message), ready)

    def _finish_sending(self, parcel: Parcel) -> None:
        """Wait until the thread has sent it."""

        def attempt() -> int:
            if not parcel.is_done.wait(PATIENCE_US / 1e6):
                return Status.AGAIN
            return Status.HUNG_UP if parcel.is_lost else Status.DONE

        self._run("send", attempt, peer=parcel.message.peer)

    def irecv(self, out: Tensor, src: int) -> Work:
        self._check()
        is_direct = out.is_cpu and out.is_contiguous()
        ready = out if is_direct else torch.empty(out.shape, dtype=out.dtype)
        work = Receiving(self._receive_up_to, _message(ready, src), ready=ready, out=out)
        self._receiving.setdefault(src, deque()).append(work)
        return work

    def _receive_up_to(self, last: Receiving) -> None:
        """Receive what rank `peer` sends, up to `last`."""
        queue = self._receiving[last.message.peer]
        while not last.is_done:
            message = queue[0].message
            self._run("receive", partial(self._channel.pull, message), peer=message.peer)
            queue.popleft().deliver()

    def _begin(self) -> PythonChannel:
        """The channel, free for another collective."""
        self._check()
        if self._reducing:
            self._reduce_up_to()
        return self._channel

    def _check(self) -> None:
        if self._why_closed:
            raise LlamaError(f"the {self.axis} axis {self._why_closed}")
        if os.getpid() != self._pid:
            raise LlamaError(f"the {self.axis} axis belongs to process {self._pid}, not to a fork")

    def _run(self, op: str, attempt: Attempt, peer: int | None = None) -> None:
        """The call to its end. Whatever ends it otherwise also ends the axis."""
        self._marks.begin(op, peer)
        try:
            status = attempt()
            if status:
                self._wait(op, attempt, status, peer)
        except BaseException as error:
            self._hang_up(f"is out of service since its {op} failed ({type(error).__name__})")
            raise
        self._marks.end()

    def _wait(self, op: str, attempt: Attempt, status: int, peer: int | None) -> None:
        """Try until it is done. Raises what the missing rank, or this one, calls for."""
        began = time.monotonic()
        try:
            while status != Status.DONE:
                waited_s = time.monotonic() - began
                if status == Status.MISMATCH:
                    raise self._mismatch(op, peer)
                if self._why_closed:
                    raise LlamaError(f"the {self.axis} axis was closed during {op}")
                lost = self._lost(peer)
                self._channel.pace.waited_us = int(waited_s * 1e6) + PATIENCE_US
                status = attempt()  # a rank that is gone may have said it before
                if status in (Status.DONE, Status.MISMATCH) or self._why_closed:
                    continue
                what = self._marks.name(op, peer)
                if lost:
                    raise self._marks.explained(PeerLostError(f"{what}: a rank is gone ({lost})"))
                if waited_s > self.timeout_s:
                    late = f"{what}: no answer in time (waited {self.timeout_s:g} s"
                    raise self._marks.explained(RankTimeoutError(f"{late} for {self._late(peer)})"))
        finally:
            self._channel.pace.waited_us = 0

    def _missing(self, peer: int | None) -> list[int]:
        return self._channel.lagging() if peer is None else [peer]

    def _lost(self, peer: int | None) -> str:
        """Of those that are missing, who will not come, and why."""
        for rank in self._missing(peer):
            if self._channel.has_hung_up(rank):
                return f"rank {self._global_ranks[rank]} hung up"
            if self._processes.is_gone(rank):
                pid = self._processes.pid(rank)
                return f"rank {self._global_ranks[rank]}, pid {pid}, has ended"
        return ""

    def _late(self, peer: int | None) -> str:
        ranks = [self._global_ranks[rank] for rank in self._missing(peer)]
        return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"

    def _mismatch(self, op: str, peer: int | None) -> RankMismatchError:
        what = self._marks.name(op, peer)
        if peer is None:
            called = [describe_signature(self._channel.called(rank)) for rank in range(self._size)]
            calls = zip(self._global_ranks, called, strict=True)
            return RankMismatchError(
                f"{what}: mismatch between collectives: "
                + "; ".join(f"rank {rank} called {text}" for rank, text in calls)
            )
        sent = describe_signature(self._channel.announced(peer))
        expected = describe_signature(self._receiving[peer][0].message.signature)
        return RankMismatchError(f"{what}: expected a {expected}, but it sent a {sent}")

    def _hang_up(self, why: str) -> None:
        self._why_closed = self._why_closed or why
        self._channel.hang_up()


def _ready(x: Tensor) -> Tensor:
    """`x` itself where it lies in this process's memory without gaps, else a copy that does."""
    if x.is_cpu and x.is_contiguous():
        return x
    return x.to("cpu").contiguous()


def _message(ready: Tensor, peer: int) -> Message:
    data = ready.view(-1).view(torch.uint8)
    return Message(data, peer, signature_of("message", ready))


def _joined(parts: Tensor, x: Tensor, dim: int) -> Tensor:
    """Rows of `parts`, each a tensor like `x`, side by side along `dim`."""
    if x.dim() == 0:
        raise RuntimeError("zero-dimensional tensors cannot be concatenated")
    dim = dim % x.dim()
    size = len(parts)
    if all(n == 1 for n in x.shape[:dim]):  # in memory they are side by side already
        joined = parts.view(*x.shape[:dim], size * x.shape[dim], *x.shape[dim + 1 :])
    else:
        joined = torch.cat(parts.view(size, *x.shape).unbind(), dim)
    return joined.to(x.device)
