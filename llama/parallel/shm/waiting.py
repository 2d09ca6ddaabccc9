"""The words of a segment that ranks wait for each other by, and how a wait goes."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from llama.parallel.shm.layout import WORD_BYTES
from llama.parallel.shm.segment import Segment

PATIENCE_US = 20_000
SPIN_US = 50
YIELD_US = 500

_IS_ORDERED = platform.machine().lower() in ("x86_64", "amd64", "i686")
_CLOSED = 3


class Status(IntEnum):
    """How far a call has come; anything but DONE may be tried again."""

    DONE = 0
    AGAIN = 1
    HUNG_UP = 2
    MISMATCH = 3


Condition = tuple[Sequence[tuple[int, int]], int]
"""What a step waits for: the words at these indices, each written by a rank, reach this value."""


@dataclass
class Pace:
    """How a channel waits: when it stops to spin and then to yield, and when a call returns.

    `waited_us` is how long the wait has taken before the call.
    """

    spin_us: int
    awake_us: int = YIELD_US
    waited_us: int = 0
    patience_us: int = PATIENCE_US


class Words:
    """All words of `segment`, as rank `rank` reads and writes them.

    `is_crowded` says that there are more ranks than cores: then nobody spins.
    """

    def __init__(self, segment: Segment, rank: int, *, is_crowded: bool) -> None:
        self.rank = rank
        self.size = segment.layout.n_ranks
        self.pace = Pace(spin_us=0 if is_crowded else SPIN_US)
        self._layout = segment.layout
        self._words = memoryview(segment.memory).cast("Q")
        self._step = [self._layout.header(r) // WORD_BYTES for r in range(self.size)]
        self._lock = threading.Lock()

    def hang_up(self) -> None:
        self._fence()  # what this rank has said is there before it is gone
        self._words[self._step[self.rank] + _CLOSED] = 1

    def has_hung_up(self, rank: int) -> bool:
        return self._words[self._step[rank] + _CLOSED] != 0

    def _await(self, condition: Condition) -> int:
        awaited, value = condition
        for index, rank in awaited:
            if self._words[index] < value:
                status = self._linger(index, rank, value)
                if status:
                    return status
        return Status.DONE

    def _linger(self, index: int, rank: int, value: int) -> int:
        """As `await` in src/shm.c: awake first, then asleep for a share of the time it takes."""
        began = time.monotonic()
        while self._words[index] < value:
            here_us = int((time.monotonic() - began) * 1e6)
            waited_us = self.pace.waited_us + here_us
            is_over = self.has_hung_up(rank) or self.has_hung_up(self.rank)
            if is_over or here_us >= self.pace.patience_us:
                is_there = self._words[index] >= value
                return Status.DONE if is_there else Status.HUNG_UP if is_over else Status.AGAIN
            if waited_us >= self.pace.awake_us:
                nap_us = max(30, min(waited_us // 16, 1000 if waited_us < 1_000_000 else 5000))
                time.sleep(min(nap_us, self.pace.patience_us - here_us) / 1e6)
            elif waited_us >= self.pace.spin_us:
                os.sched_yield()
        return Status.DONE

    def _fence(self) -> None:
        """What was read and written before stays before; x86 does not do otherwise.

        Nothing moves over the end of one locked section and the beginning of the next.
        """
        if not _IS_ORDERED:
            with self._lock:
                pass
            with self._lock:
                pass
