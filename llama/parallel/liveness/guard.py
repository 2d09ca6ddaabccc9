"""When this rank must end because of what it knows of the others, of the store, or of itself.

Seconds and facts in, a failure out: no threads and no clock. Everything counts only the time in
which this process itself was running.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from llama.errors import PeerLostError, RankTimeoutError
from llama.parallel.liveness.beat import Beat, Stopwatch
from llama.parallel.liveness.failure import Failure, FailureRecord, failure_of
from llama.parallel.liveness.whereabouts import Phase

TICK_S = 0.25
OWN_WORDS_S = 1.0
"""For the main thread to say itself what it has lost, which it knows more of."""
BUSY_WEIGHT = 0.1
"""A process that keeps a core busy gets ten times as long for a step: a large layer on a slow CPU
is no failure, and a rank that hangs without computing is found at the limit all the same."""
_HEARSAY_S = 2.0
"""For a rank in a call to notice by itself that another one has hung up or left."""


@dataclass(frozen=True)
class Limits:
    """In seconds; see ParallelConfig."""

    load_s: float
    step_s: float
    heartbeat_s: float


class Guard:
    """`judge`, many times a second, until there is a failure to end for."""

    def __init__(
        self,
        record: FailureRecord,
        limits: Limits,
        *,
        store_place: str,
        store_host: Callable[[], Beat | None] = lambda: None,
    ) -> None:
        """`store_host` gives the last beat of the rank that hosts the store, if one does."""
        self._record = record
        self._limits = limits
        self._store_place = store_place
        self._store_host = store_host
        self.partners: Collection[int] | None = None
        """The ranks of this one's replica, which it cannot do without; None is all ranks."""
        self.computes_on_cpu = True
        """Whether computing shows in this process's CPU time: waiting for a GPU may, too."""
        self._found = Stopwatch()
        self._stuck = Stopwatch()
        self._stuck_weighted = Stopwatch()
        self._no_answer = Stopwatch()
        self._broken = Stopwatch()
        self._missed = Stopwatch()

    def judge(
        self,
        passed_s: float,
        *,
        busy_s: float,
        n_answers: int,
        problem: str | None,
        left: Mapping[int, Beat],
    ) -> Failure | None:
        """The failure that this process must end for now, if any.

        `passed_s` since the last call, with `busy_s` of CPU time on all cores; `n_answers` the
        store has given; `problem` is its error once it failed; ranks that have `left`, with their
        last beats, will not answer. A program that was told of a failure itself has the word.
        """
        record = self._record
        if record.found is None:
            own = self._stuck_self(passed_s, busy_s) or self._left_alone(passed_s, left)
            if own is not None:
                record.publish_failure(own)
            else:
                record.found = self._lost_store(passed_s, n_answers, problem)
        return None if record.is_told else self._ripe(passed_s)

    @property
    def _is_in_call(self) -> bool:
        return self._record.whereabouts.phase is not Phase.IDLE

    def _ripe(self, passed_s: float) -> Failure | None:
        """The record, once the main thread has had its time to speak."""
        found = self._record.found
        is_final = found is not None and found.is_leaving
        first = found or self._record.consequence
        matters = first is not None and (is_final or self._is_in_call)
        waited_s = self._found.observe((first, matters), passed_s)
        return first if matters and waited_s >= (OWN_WORDS_S if is_final else _HEARSAY_S) else None

    def _stuck_self(self, passed_s: float, busy_s: float) -> Failure | None:
        at = self._record.whereabouts
        doing = (at.phase, at.n_done, at.waiting_for)
        is_busy = self.computes_on_cpu and at.phase is Phase.STEP and busy_s >= passed_s / 2
        computing_s = self._stuck.observe(doing, passed_s)
        counted_s = self._stuck_weighted.observe(doing, passed_s * (BUSY_WEIGHT if is_busy else 1))
        limit_s, name = {
            Phase.STEP: (self._limits.step_s, self._long_step),
            Phase.LOAD: (self._limits.load_s, "loading for {} s without finishing a tensor"),
        }.get(at.phase, (float("inf"), ""))
        if at.waiting_for is not None or counted_s < limit_s:
            return None
        variable = f"LLAMA_{at.phase.value}_TIMEOUT_S"
        busy = f", {1 / BUSY_WEIGHT:g} times that on a busy core" if is_busy else ""
        words = f"{name.format(f'{computing_s:.1f}')} (limit {limit_s:g}{busy}; {variable})"
        return self._record.about_this_rank(words, exit_code=RankTimeoutError.exit_code)

    @property
    def _long_step(self) -> str:
        """A GPU is waited for without a mark, whether it computes or waits for another rank's."""
        words = "computing for {} s without finishing a layer"
        return words if self.computes_on_cpu else f"{words}, or its GPU waits for another rank's"

    def _lost_store(self, passed_s: float, n_answers: int, problem: str | None) -> Failure | None:
        """An idle rank does not need the store; but one whose host is silent may be cut off."""
        place = self._store_place
        broken_s = self._broken.observe((problem, self._is_in_call), passed_s)
        if problem is not None:
            if broken_s < _HEARSAY_S or not self._is_in_call:
                return None
            words = f"{place} is gone: its process ended, or the connection broke ({problem})"
            return self._about_store(words, exit_code=PeerLostError.exit_code)
        silent_s = self._no_answer.observe(n_answers, passed_s)
        if silent_s < self._limits.heartbeat_s:
            return None
        words = (
            f"{place} has not answered for {silent_s:.1f} s (limit {self._limits.heartbeat_s:g}; "
            "LLAMA_HEARTBEAT_TIMEOUT_S): its process is stopped, or this host is cut off"
        )
        return self._about_store(words, exit_code=RankTimeoutError.exit_code)

    def _about_store(self, words: str, *, exit_code: int) -> Failure:
        host = self._store_host()
        if host is None:
            return self._record.about_this_rank(words, exit_code=exit_code)
        return failure_of(host, words, exit_code=exit_code)

    def _left_alone(self, passed_s: float, left: Mapping[int, Beat]) -> Failure | None:
        """A rank has ended well while this one waits for somebody, or has lost a connection.

        Another replica may be done long before this one.
        """
        at = self._record.whereabouts
        is_waiting = at.phase is Phase.WAIT or at.waiting_for is not None
        needed = left if self.partners is None else {*self.partners, *at.awaited}
        gone = tuple(sorted(rank for rank in left if rank in needed))
        waited_s = self._missed.observe((gone, self._is_in_call, is_waiting, at.n_done), passed_s)
        is_missed = self._is_in_call and is_waiting and waited_s >= _HEARSAY_S
        if not gone or not (is_missed or self._record.is_told):
            return None
        what = f"left (exit 0?) while rank {self._record.rank} was in {at.describe()}"
        return failure_of(left[gone[0]], what, exit_code=PeerLostError.exit_code)
