"""Messages of int64 between control ranks, of any length, where the sender does not wait.

A message is one frame of fixed size (its length, then its beginning) and, when it is longer, a
second transfer of exactly the rest. Nothing is awaited ahead: a receive left open when a process
exits aborts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from llama.parallel.comm import Communicator, Work

FRAME_SIZE = 1024
"""Integers in a frame: the plan of some 30 decoding sequences, still a small packet (8 KiB)."""


class Mailbox:
    """This rank's messages to and from the others of `comm`, in order for each pair of ranks.

    `post` returns at once unless `window` messages to that rank are still on their way.
    """

    def __init__(
        self, comm: Communicator, *, frame_size: int = FRAME_SIZE, window: int = 16
    ) -> None:
        self._comm = comm
        self._frame_size = frame_size
        self._window = window
        self._posted: dict[int, deque[list[Work]]] = {}

    def post(self, message: Sequence[int], dst: int) -> None:
        """Start sending `message` to rank `dst`."""
        frame = torch.zeros(self._frame_size, dtype=torch.int64)
        values = torch.tensor([len(message), *message], dtype=torch.int64)
        head, rest = values[: self._frame_size], values[self._frame_size :]
        frame[: len(head)] = head
        works = [self._comm.isend(frame, dst)]
        if len(rest):
            works.append(self._comm.isend(rest, dst))
        posted = self._posted.setdefault(dst, deque())
        posted.append(works)
        while len(posted) > self._window:
            _wait(posted.popleft())

    def receive(self, src: int) -> list[int]:
        """The next message from rank `src`, waiting for it."""
        frame = self._comm.recv(torch.empty(self._frame_size, dtype=torch.int64), src)
        n_values = int(frame[0]) + 1
        values: list[int] = frame[1:n_values].tolist()
        if n_values > self._frame_size:
            rest = torch.empty(n_values - self._frame_size, dtype=torch.int64)
            values += self._comm.recv(rest, src).tolist()
        return values

    def flush(self) -> None:
        """Wait until every posted message can be received without this rank."""
        for posted in self._posted.values():
            while posted:
                _wait(posted.popleft())


def _wait(works: list[Work]) -> None:
    for work in works:
        work.wait()
