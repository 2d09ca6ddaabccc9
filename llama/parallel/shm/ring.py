"""Messages between two ranks through the ring of their pair, as `shm_push` and `shm_pull` in C."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int64
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llama.parallel.shm.layout import TAIL_OFFSET, WORD_BYTES
from llama.parallel.shm.segment import Segment
from llama.parallel.shm.waiting import Status, Words


@dataclass
class Message:
    """`data` (bytes) on its way to or from rank `peer`; `done` of them so far, -8 before the first.

    The signature goes ahead, and counts as eight bytes.
    """

    data: Tensor
    peer: int
    signature: int
    done: c_int64 = field(default_factory=lambda: c_int64(-WORD_BYTES))


class PythonRings(Words):
    """Messages to or from one rank go one after the other; everything begins at a whole word."""

    def __init__(self, segment: Segment, rank: int, *, is_crowded: bool) -> None:
        super().__init__(segment, rank, is_crowded=is_crowded)
        self._bytes = torch.frombuffer(segment.memory, dtype=torch.uint8)

    def push(self, message: Message) -> int:
        """Go on with a message to `peer`."""
        header = self._layout.ring_header(self.rank, message.peer)
        head_at, tail_at = header // WORD_BYTES, (header + TAIL_OFFSET) // WORD_BYTES
        full, ring = self._layout.ring_bytes, self._layout.ring(self.rank, message.peer)
        while message.done.value < len(message.data):
            head = self._words[head_at]
            status = self._await(([(tail_at, message.peer)], max(0, head - full + WORD_BYTES)))
            if status:
                return status
            room = full - (head - self._words[tail_at])
            if message.done.value < 0:
                self._words[(ring + head % full) // WORD_BYTES] = message.signature
                head, room = head + WORD_BYTES, room - WORD_BYTES
                message.done.value = 0
            for here, part in self._stretches(message, ring, head, room):
                here.copy_(part)
                head += _padded(len(part))
            self._fence()
            self._words[head_at] = head
        return Status.DONE

    def pull(self, message: Message) -> int:
        """Go on with a message from `peer`."""
        header = self._layout.ring_header(message.peer, self.rank)
        head_at, tail_at = header // WORD_BYTES, (header + TAIL_OFFSET) // WORD_BYTES
        ring = self._layout.ring(message.peer, self.rank)
        while message.done.value < len(message.data):
            tail = self._words[tail_at]
            status = self._await(([(head_at, message.peer)], tail + WORD_BYTES))
            if status:
                return status
            ready = self._words[head_at] - tail
            self._fence()
            if message.done.value < 0:
                if self.announced(message.peer) != message.signature:
                    return Status.MISMATCH
                tail, ready = tail + WORD_BYTES, ready - WORD_BYTES
                message.done.value = 0
            for here, part in self._stretches(message, ring, tail, ready):
                part.copy_(here)
                tail += _padded(len(part))
            self._fence()
            self._words[tail_at] = tail
        return Status.DONE

    def announced(self, src: int) -> int:
        """The signature of the message that comes next from rank `src`, where there is one."""
        tail = self._words[(self._layout.ring_header(src, self.rank) + TAIL_OFFSET) // WORD_BYTES]
        at = self._layout.ring(src, self.rank) + tail % self._layout.ring_bytes
        return self._words[at // WORD_BYTES]

    def _stretches(
        self, message: Message, ring: int, at: int, n_bytes: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The next `n_bytes` of a ring from position `at` on, beside their part of the message."""
        while n_bytes > 0 and message.done.value < len(message.data):
            here, done = at % self._layout.ring_bytes, message.done.value
            n = min(len(message.data) - done, n_bytes, self._layout.ring_bytes - here)
            yield self._bytes[ring + here : ring + here + n], message.data[done : done + n]
            message.done.value += n
            at, n_bytes = at + _padded(n), n_bytes - _padded(n)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // WORD_BYTES) * WORD_BYTES
