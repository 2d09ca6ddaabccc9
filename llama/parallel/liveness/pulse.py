"""What a heartbeat does through the job's store: write beats, read beats, look for records.

A star: rank 0 reads all beats and every other rank reads rank 0's. Every rank looks for the record
of a failure, and at the processes of its own machine. Any operation may block as long as the
store's host does, so this is for a thread that nobody waits for. It never touches a device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llama.errors import PeerLostError, RankTimeoutError
from llama.log import get_logger
from llama.parallel.liveness.beat import (
    BEAT_S,
    Beat,
    Silence,
    Stopwatch,
    describe_incident,
    describe_waits,
    standstill,
)
from llama.parallel.liveness.failure import (
    CAUSE_KEY,
    CONSEQUENCE_KEY,
    ENDED_KEY,
    FailureRecord,
    failure_of,
    read_failure,
)
from llama.parallel.liveness.neighbours import Neighbours, is_stopped
from llama.parallel.liveness.whereabouts import Phase

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BEAT_KEY = "beat"
_LEFT_KEY = "left"
_MAYBE_LEFT_S = 2 * BEAT_S
_LONG_WAIT_S = 30.0


class Pulse:
    """One rank's share. `store` is the meeting's, `job_store` the job's: connections of its own."""

    def __init__(
        self,
        record: FailureRecord,
        *,
        store: Store,
        job_store: Store,
        size: int,
        timeout_s: float,
        step_timeout_s: float,
    ) -> None:
        self.neighbours = Neighbours({})
        self.hosts: Mapping[int, str] = {}
        """Of the neighbours."""
        self.n_answers = 0
        """Operations that the store has answered."""
        self.left: Mapping[int, Beat] = {}
        """The last beats of the ranks that have ended well."""
        self._record = record
        self._store = store
        self._job_store = job_store
        self._size = size
        self._timeout_s = timeout_s
        self._step_timeout_s = step_timeout_s
        self._beats: dict[int, Beat] = {}
        self._n = 0
        self._silence = Silence()
        self._standstill = Stopwatch()
        self._waiting = Stopwatch()
        self._beat_at_s: float | None = None

    @property
    def beats(self) -> Sequence[Beat]:
        """The newest ones that this rank knows of, its own among them."""
        return [beat for _, beat in sorted(self._beats.copy().items())]

    @property
    def last_of_rank_0(self) -> Beat | None:
        """None as long as it is not heard of."""
        return self._beats.get(0)

    def beat(self, now_s: float) -> None:
        """Once round. Raises what the store raises."""
        passed_s = min(now_s - self._beat_at_s, 2 * BEAT_S) if self._beat_at_s is not None else 0.0
        self._beat_at_s = now_s
        self._write()
        self._look()
        if self._record.found is None:
            self._judge_processes()
            self._read(now_s)
            self._judge_silence()
        if self._record.rank == 0 and self._record.found is None and not self.left:
            self._judge_standstill(passed_s)
            self._tell_wait(passed_s)

    def leave(self) -> None:
        """Say that this rank ends well."""
        self._write()
        self._store.set(f"{_LEFT_KEY}/{self._record.rank}", "well")

    def _write(self) -> None:
        self._n += 1
        record, at = self._record, self._record.whereabouts
        own = Beat(
            rank=record.rank,
            host=record.host,
            pid=os.getpid(),
            n=self._n,
            **at.place(),
            waiting_for=at.waiting_for,
            n_done=at.n_done,
        )
        self._beats[record.rank] = own
        self._store.set(f"{BEAT_KEY}/{record.rank}", own.to_json())
        self.n_answers += 1

    def _look(self) -> None:
        """Adopt the record. One of a rank that goes on may still become final."""
        record = self._record
        if record.found is None or not record.found.is_leaving:
            cause = read_failure(self._store, CAUSE_KEY)
            record.found = cause or read_failure(self._job_store, ENDED_KEY) or record.found
            record.consequence = read_failure(self._store, CONSEQUENCE_KEY)
        self.n_answers += 1

    def _read(self, now_s: float) -> None:
        watched = range(1) if self._record.rank else range(1, self._size)
        for other in watched:
            if other not in self._beats and other not in self.left:
                self._read_beat(other)
        present = [other for other in watched if other in self._beats and other not in self.left]
        if present:
            texts = self._store.multi_get([f"{BEAT_KEY}/{other}" for other in present])
            self.n_answers += 1
            for other, text in zip(present, texts, strict=True):
                beat = Beat.from_json(text.decode(errors="replace"))
                self._beats[other] = beat or self._beats[other]
            self._silence.read(now_s, {other: self._beats[other].n for other in present})

    def _read_beat(self, rank: int) -> Beat | None:
        """The last beat of any rank, None when it never had one."""
        if self._store.check([f"{BEAT_KEY}/{rank}"]):
            beat = Beat.from_json(self._store.get(f"{BEAT_KEY}/{rank}").decode(errors="replace"))
            if beat is not None:
                self._beats[rank] = beat
        return self._beats.get(rank)

    def _judge_silence(self) -> None:
        for rank in self._silence.silent_for(_MAYBE_LEFT_S):
            self._notice_left(rank)
        hosts = {rank: beat.host for rank, beat in self._beats.items()}
        incident = self._silence.ended_incident()
        if incident and self._record.rank <= 1:  # the others would say the same of rank 0
            get_logger().warning("%s", describe_incident(incident, hosts))
        for rank, silent_s in self._silence.silent_for(self._timeout_s).items():
            beat = self._beats[rank]
            is_here = beat.host == self._record.host and rank in self.neighbours.watched
            is_held = is_here and is_stopped(beat.pid)
            limit_s, variable = self._patience(beat, is_running_here=is_here and not is_held)
            if silent_s < limit_s:
                continue
            how = "its process is stopped" if is_held else "no beat came"
            words = f"silent for {silent_s:.1f} s: {how} (limit {limit_s:g}; {variable})"
            self._accuse(beat, words, RankTimeoutError.exit_code)

    def _patience(self, beat: Beat, *, is_running_here: bool) -> tuple[float, str]:
        """How long that rank may be silent, and what sets it.

        Beats need Python's lock, which one long operation in C may hold: a program that parses a
        large file between calls is no failure where its process is seen to run.
        """
        is_idle = beat.phase == Phase.IDLE.value
        if is_running_here and is_idle:
            return math.inf, ""
        if (is_running_here or is_idle) and self._step_timeout_s > self._timeout_s:
            return self._step_timeout_s, "LLAMA_STEP_TIMEOUT_S"
        return self._timeout_s, "LLAMA_HEARTBEAT_TIMEOUT_S"

    def look_around(self) -> None:
        """What is left to do without a store: a process that ended may have ended well."""
        for rank, pid in self.neighbours.take_ended().items():
            words = "the process ended, and the job's store is gone"
            beat = self._last_of(rank, pid, phase="UNKNOWN", doing="its beats are gone")
            failure = failure_of(beat, words, exit_code=PeerLostError.exit_code)
            self._record.found = self._record.found or replace(failure, is_leaving=False)

    def _judge_processes(self) -> None:
        for rank, pid in self.neighbours.take_ended().items():
            if self._notice_left(rank):
                continue
            said = read_failure(self._store, CONSEQUENCE_KEY)
            if said is not None and said.is_leaving:  # it went for that, after waiting for a cause
                self._record.publish_failure(said)
            else:
                self._read_beat(rank)
                words = "the process died (killed?)"
                beat = self._last_of(rank, pid, phase=Phase.INIT.value, doing="starting")
                self._accuse(beat, words, PeerLostError.exit_code)

    def _last_of(self, rank: int, pid: int, *, phase: str, doing: str) -> Beat:
        """The last known beat of a neighbour; one with `phase` and `doing` where none is."""
        host = self.hosts.get(rank, self._record.host)
        return self._beats.get(rank) or Beat(
            rank, host, pid, 0, phase, doing,
            step=None, layer=None, file=None, waiting_for=None, n_done=0,
        )  # fmt: skip

    def _judge_standstill(self, passed_s: float) -> None:
        if len(self._beats) < self._size:
            return
        done = standstill(self.beats)
        unchanged_s = self._standstill.observe(done, passed_s)
        if done is not None and unchanged_s >= self._step_timeout_s:
            words = (
                f"all ranks have waited for one another for {unchanged_s:.1f} s (limit "
                f"{self._step_timeout_s:g}; LLAMA_STEP_TIMEOUT_S): {describe_waits(self.beats)}"
            )
            self._accuse(self._beats[0], words, RankTimeoutError.exit_code)

    def _tell_wait(self, passed_s: float) -> None:
        """Once for every long wait: where those are that rank 0 waits for."""
        own, waiting = self._beats[0], Phase.WAIT.value
        before_s = self._waiting.seconds
        waited_s = self._waiting.observe((own.phase, own.n_done), passed_s)
        if own.phase == waiting and before_s < _LONG_WAIT_S <= waited_s:
            late = [beat for beat in self.beats if beat.phase != waiting]
            where = ", ".join(f"rank {b.rank} ({b.host}), which is in {b.where}" for b in late)
            get_logger().warning("%s: waiting for %s", own.doing, where or "the connection")

    def _notice_left(self, rank: int) -> bool:
        if self._store.check([f"{_LEFT_KEY}/{rank}"]):
            beat = self._read_beat(rank)
            if beat is not None:
                self.left = {**self.left, rank: beat}
            self._silence.forget(rank)
            return True
        return False

    def _accuse(self, beat: Beat, words: str, exit_code: int) -> None:
        self._record.publish_failure(failure_of(beat, words, exit_code=exit_code))
