"""The heartbeat of one rank: two daemon threads that notice what the main thread cannot.

One beats, and may block with the store; the other watches and ends the process, and waits for
nobody. A rank that computes or sleeps beats all the same: only one that is stopped, dead or cut off
does not, and one whose program holds Python's lock. After a fork the child has none.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llama.parallel.liveness.beat import BEAT_S
from llama.parallel.liveness.failure import FailureRecord, describe
from llama.parallel.liveness.guard import TICK_S, Guard
from llama.parallel.liveness.last_words import LastWords
from llama.parallel.liveness.neighbours import Neighbours
from llama.parallel.liveness.pulse import BEAT_KEY, Pulse

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_END_PATIENCE_S = 1.0


class Heartbeat:
    """From `start` to `leave` or `step_back`."""

    def __init__(
        self, pulse: Pulse, guard: Guard, *, record: FailureRecord, words: LastWords
    ) -> None:
        self._pulse = pulse
        self._guard = guard
        self._record = record
        self._words = words
        self._problem: str | None = None
        self._is_over = threading.Event()
        self._is_well = False
        self._pid = os.getpid()
        self._threads = [
            threading.Thread(target=work, name=f"llama-{work.__name__.strip('_')}", daemon=True)
            for work in (self._beat, self._watch)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def watch_processes(self, pids: Mapping[int, int], *, hosts: Mapping[int, str]) -> None:
        """Notice from now on when one of these ranks' processes, on this machine, has ended.

        Containers of one machine may see each other's processes, and have `hosts` of their own.
        """
        self._pulse.hosts = hosts
        self._pulse.neighbours = Neighbours(pids)

    def leave(self) -> None:
        """End, and tell the others that this rank ends well. Idempotent; takes at most seconds."""
        self._end(is_well=True)

    def step_back(self) -> None:
        """End without a word: the program has the word, or others have lost this rank already."""
        self._end(is_well=False)

    def _end(self, *, is_well: bool) -> None:
        if os.getpid() != self._pid or self._is_over.is_set():
            return
        self._is_well = is_well
        self._is_over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_END_PATIENCE_S)

    def _beat(self) -> None:
        while True:
            try:
                if self._problem is None:
                    self._pulse.beat(time.monotonic())
                else:
                    self._pulse.look_around()
            except Exception as error:  # a store that failed is not asked again
                self._problem = describe(error)
            if self._is_over.wait(BEAT_S):
                break
        if self._is_well and self._problem is None:
            with suppress(Exception):
                self._pulse.leave()

    def _watch(self) -> None:
        before_s, busy_before_s = time.monotonic(), time.process_time()
        while not self._is_over.wait(TICK_S):
            now_s, busy_now_s = time.monotonic(), time.process_time()
            passed_s, before_s = min(now_s - before_s, 2 * TICK_S), now_s
            busy_s, busy_before_s = busy_now_s - busy_before_s, busy_now_s
            failure = self._guard.judge(
                passed_s,
                busy_s=busy_s,
                n_answers=self._pulse.n_answers,
                problem=self._problem,
                left=self._pulse.left,
            )
            if failure is not None and not self._is_over.is_set():
                if not self._words.claim():
                    self._words.wait_for_the_end(failure.exit_code)
                line = f"first failure: {failure.line}"
                self._words.speak([line], exit_code=failure.exit_code, failure=failure)


def last_beat(job_store: Store, rank: int) -> dict[str, Any] | None:
    """The newest beat of `rank`, as a dict of `Beat`'s fields; None when there is none.

    Raises what the store raises.
    """
    number = job_store.add(f"llama/meetings/{rank}", 0)
    key = f"llama/{number}/{BEAT_KEY}/{rank}"
    with suppress(ValueError):
        if job_store.check([key]):
            beat = json.loads(job_store.get(key).decode())
            return beat if isinstance(beat, dict) else None
    return None
