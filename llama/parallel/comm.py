"""What the ranks of one axis say to each other; and the axis of one rank, where nothing needs to be
said.

Ranks are local to the axis, 0..size-1. Layers and engine know only this interface: the transports
are in modules of their own (`torch_comm`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor


class Work(Protocol):
    """Something under way. Its tensors may not be touched before `wait` returns."""

    def wait(self) -> None: ...


class Communicator(ABC):
    """The collectives of one axis. Every rank of the axis makes the same calls in the same order.

    Tensors may live on any device and come back on it; shapes and dtypes must be equal on all
    ranks. Anything may raise PeerLostError, RankTimeoutError or RankMismatchError, and after that
    the axis is out of service.
    """

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks. May write `x` in place: use what is returned, forget `x`."""

    @abstractmethod
    def all_reduce_async(self, x: Tensor) -> Work:
        """The sum over ranks, in `x` itself once the work is done."""

    @abstractmethod
    def all_gather(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """Everybody's `x`, concatenated along `dim` in rank order."""

    @abstractmethod
    def gather(self, x: Tensor, *, dst: int = 0, dim: int = -1) -> Tensor | None:
        """As `all_gather` on rank `dst`, None on the others."""

    @abstractmethod
    def broadcast(self, x: Tensor, *, src: int = 0) -> Tensor:
        """`x` filled in place with rank `src`'s."""

    @abstractmethod
    def isend(self, x: Tensor, dst: int) -> Work:
        """Start sending `x`; messages to one rank arrive in order."""

    @abstractmethod
    def irecv(self, out: Tensor, src: int) -> Work:
        """Start receiving into `out`, which has the shape and dtype of what `src` sends."""

    def send(self, x: Tensor, dst: int) -> None:
        """Send `x` and wait until it may be changed again."""
        self.isend(x, dst).wait()

    def recv(self, out: Tensor, src: int) -> Tensor:
        """`out`, filled with what `src` sends."""
        self.irecv(out, src).wait()
        return out

    @abstractmethod
    def barrier(self) -> None:
        """Return once every rank has called this."""


class Done:
    """Work with nothing left to do."""

    def wait(self) -> None:
        pass


class SingleCommunicator(Communicator):
    """The axis of one rank: every collective is the identity and nobody is there to send to."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_reduce_async(self, x: Tensor) -> Work:
        return Done()

    def all_gather(self, x: Tensor, *, dim: int = -1) -> Tensor:
        return x

    def gather(self, x: Tensor, *, dst: int = 0, dim: int = -1) -> Tensor | None:
        return x

    def broadcast(self, x: Tensor, *, src: int = 0) -> Tensor:
        return x

    def isend(self, x: Tensor, dst: int) -> Work:
        raise AssertionError(f"send to rank {dst} of an axis of one rank")

    def irecv(self, out: Tensor, src: int) -> Work:
        raise AssertionError(f"receive from rank {src} of an axis of one rank")

    def barrier(self) -> None:
        pass
