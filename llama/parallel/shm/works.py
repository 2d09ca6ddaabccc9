"""What `isend`, `irecv` and `all_reduce_async` over shared memory return."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llama.parallel.shm.channel import Attempt
from llama.parallel.shm.ring import Message
from llama.parallel.shm.sender import Parcel


class Sending:
    """A message that did not fit at once; `source` lives as long as it is read."""

    def __init__(self, finish: Callable[[Parcel], None], parcel: Parcel, source: Tensor) -> None:
        self._finish = finish
        self._parcel = parcel
        self._source = source

    def wait(self) -> None:
        self._finish(self._parcel)


class Receiving:
    """A message that is read when somebody waits for it, or for a later one of the same rank."""

    def __init__(
        self,
        receive_up_to: Callable[[Receiving], None],
        message: Message,
        *,
        ready: Tensor,
        out: Tensor,
    ) -> None:
        self._receive_up_to = receive_up_to
        self.message = message
        self._ready = ready
        self._out = out
        self.is_done = False

    def wait(self) -> None:
        self._receive_up_to(self)

    def deliver(self) -> None:
        if self._ready is not self._out:
            self._out.copy_(self._ready)
        self.is_done = True


class Reducing:
    """A sum that has begun, and goes on when somebody waits for it or calls something else."""

    def __init__(
        self,
        reduce_up_to: Callable[[Reducing], None],
        attempt: Attempt,
        *,
        ready: Tensor,
        out: Tensor,
    ) -> None:
        self._reduce_up_to = reduce_up_to
        self.attempt = attempt
        self._ready = ready
        self._out = out
        self.is_done = False

    def wait(self) -> None:
        self._reduce_up_to(self)

    def deliver(self) -> None:
        if self._ready is not self._out:
            self._out.copy_(self._ready)
        self.is_done = True
