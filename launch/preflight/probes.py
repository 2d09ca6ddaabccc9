"""Messages sent over one communicator again and again: how long each took, and was it right.

Knows no layout. Every rank of the communicator, or both ends of a pair, makes the same calls.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.parallel.comm import Communicator


@dataclass(frozen=True)
class Tries:
    """Seconds of each try on this rank, and how many results here were not what they had to be."""

    times_s: Sequence[float]
    n_wrong: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)


@dataclass(frozen=True)
class Message:
    """A size, and how often it is worth sending."""

    n_bytes: int
    n_warm_ups: int
    fewest: int
    most: int


class Probe(ABC):
    """Tries over `comm`, on tensors of `device`."""

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        self._comm = comm
        self._device = device

    def run(self, message: Message, *, seconds: float) -> Tries:
        """As many tries as fit into `seconds`, within the message's limits. Collective."""
        warm_up = self._tries(message.n_bytes, message.n_warm_ups)
        wanted = int(seconds / max(warm_up.median_s, 1e-9))
        n_tries = self._agreed(min(max(wanted, message.fewest), message.most))
        tries = self._tries(message.n_bytes, n_tries)
        return Tries(tries.times_s, warm_up.n_wrong + tries.n_wrong)

    @abstractmethod
    def _tries(self, n_bytes: int, n_tries: int) -> Tries:
        """`n_tries` one right after the other, checked when all are done."""

    @abstractmethod
    def _agreed(self, count: int) -> int:
        """The first rank's `count`, on every rank."""

    def _pattern(self, n_bytes: int) -> Tensor:
        """float32 integers so small that every sum of them is exact."""
        return torch.arange(n_bytes // 4, device=self._device).remainder(7).float() + 1

    def _timed(self, act: Callable[[Tensor], object], x: Tensor) -> float:
        began = time.perf_counter()
        act(x)
        if self._device.type == "cuda":  # nccl only makes the stream wait
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began


class SumProbe(Probe):
    """All-reduces over the whole communicator."""

    def _tries(self, n_bytes: int, n_tries: int) -> Tries:
        pattern = self._pattern(n_bytes)
        addends = [pattern * (self._comm.rank + 1) for _ in range(n_tries)]
        sums: list[Tensor] = []

        def add_up(x: Tensor) -> None:
            sums.append(self._comm.all_reduce(x))

        self._comm.barrier()
        times_s = [self._timed(add_up, x) for x in addends]
        expected = pattern * (self._comm.size * (self._comm.size + 1) // 2)
        return Tries(times_s, sum(not torch.equal(total, expected) for total in sums))

    def _agreed(self, count: int) -> int:
        return int(self._comm.broadcast(torch.tensor([count], device=self._device)).item())


class EchoProbe(Probe):
    """Messages from rank `left` to the next one and back; a time is half of the round trip."""

    def __init__(self, comm: Communicator, device: torch.device, *, left: int) -> None:
        super().__init__(comm, device)
        self._is_left = comm.rank == left
        self._other = left + 1 if self._is_left else left

    def _tries(self, n_bytes: int, n_tries: int) -> Tries:
        pattern = self._pattern(n_bytes)
        arrived = [torch.empty_like(pattern) for _ in range(n_tries)]

        def echo(out: Tensor) -> None:
            if self._is_left:
                self._comm.send(pattern, self._other)
            self._comm.recv(out, self._other)
            if not self._is_left:
                self._comm.send(out, self._other)

        times_s = [self._timed(echo, x) / 2 for x in arrived]
        return Tries(times_s, sum(not torch.equal(x, pattern) for x in arrived))

    def _agreed(self, count: int) -> int:
        number = torch.tensor([count], device=self._device)
        if self._is_left:
            self._comm.send(number, self._other)
        else:
            self._comm.recv(number, self._other)
        return int(number.item())
