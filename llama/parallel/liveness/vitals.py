"""What keeps the other ranks informed of this one, and this one of them: the record of failures,
the heartbeat, and the last words of the process.

Silent as long as all is well. Knows no groups and no devices.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama.config import ParallelConfig
from llama.log import get_logger, prefix_log
from llama.parallel.liveness.beat import BEAT_S
from llama.parallel.liveness.failure import FailureRecord
from llama.parallel.liveness.guard import Guard, Limits
from llama.parallel.liveness.heartbeat import Heartbeat
from llama.parallel.liveness.last_words import LastWords
from llama.parallel.liveness.neighbours import pid_space
from llama.parallel.liveness.postmortem import Postmortem
from llama.parallel.liveness.pulse import Pulse
from llama.parallel.liveness.uncaught import install_hook, installed_words
from llama.parallel.meeting.launched import Launched
from llama.parallel.meeting.rendezvous import World, as_ranks_see

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_GRACE_S = 1.0


@dataclass(frozen=True)
class ProcessFacts:
    """One rank's process, for the others to look at."""

    host: str
    pid: int
    pid_space: str

    @classmethod
    def own(cls) -> ProcessFacts:
        return cls(socket.gethostname(), os.getpid(), pid_space())


class Vitals:
    """One rank's, from the moment it knows its number; `rank` None is a process by itself."""

    def __init__(self, rank: int | None) -> None:
        host = socket.gethostname()
        self.record = FailureRecord(None, rank=rank or 0, host=host)
        self._words = installed_words() or LastWords(rank=rank or 0, host=host)
        self._guard: Guard | None = None
        self._heartbeat: Heartbeat | None = None
        self._heartbeat_s = 0.0
        self._at_exit: Finalize | None = None
        self._marks = ExitStack()
        if rank is not None:
            self._marks.callback(install_hook(self.record, self._words))
            self._marks.callback(prefix_log(rank, host))

    def start(self, world: World, wish: ParallelConfig, *, launched: Launched | None) -> None:
        """Share the record with the ranks of `world` and beat, unless there is nobody, or no wish.

        `wish` has its limits filled in.
        """
        attempt = launched.attempt if launched else 0
        self.record.store = world.store
        self._heartbeat_s = wish.limit_s("heartbeat_timeout_s")
        if world.size == 1 or not self._heartbeat_s:
            return
        try:
            self.record.store, self.record.job_store = _connect(world, attempt)
            store, job_store = _connect(world, attempt)
        except RuntimeError as error:  # a program may have made a store of its own kind
            get_logger().info("no heartbeat: this store allows one connection only: %s", error)
            return
        pulse = self._pulse(world, wish, store=store, job_store=job_store)
        step_s, load_s = wish.limit_s("step_timeout_s"), wish.limit_s("load_timeout_s")
        limits = Limits(load_s=load_s, step_s=step_s, heartbeat_s=self._heartbeat_s)
        is_in_rank_0 = launched is not None and not launched.has_launcher_store
        guard = self._guard = Guard(
            self.record,
            limits,
            store_place=_place_of(launched),
            store_host=lambda: pulse.last_of_rank_0 if is_in_rank_0 and world.rank else None,
        )
        self._heartbeat = Heartbeat(pulse, guard, record=self.record, words=self._words)
        if world.rank == 0 and (launched is None or is_in_rank_0):
            self._words.linger_s = 1.5 * BEAT_S
        # multiprocessing's forked children end without atexit, but not without this
        self._at_exit = Finalize(None, self._heartbeat.leave, exitpriority=0)
        self._heartbeat.start()

    def _pulse(
        self, world: World, wish: ParallelConfig, *, store: Store, job_store: Store
    ) -> Pulse:
        pulse = Pulse(
            self.record,
            store=store,
            job_store=job_store,
            size=world.size,
            timeout_s=self._heartbeat_s,
            step_timeout_s=wish.limit_s("step_timeout_s"),
        )
        folder = os.environ.get("LLAMA_LOG_DIR")
        if folder:
            self._words.postmortem = Postmortem(Path(folder), lambda: pulse.beats)
        return pulse

    def meet(self, processes: Sequence[ProcessFacts]) -> None:
        """The processes of all ranks, in rank order: those on this machine are watched."""
        own = processes[self.record.rank]
        here = {
            rank: process
            for rank, process in enumerate(processes)
            if process.pid_space and process.pid_space == own.pid_space and process != own
        }
        if self._heartbeat is not None:
            self._heartbeat.watch_processes(
                {rank: process.pid for rank, process in here.items()},
                hosts={rank: process.host for rank, process in here.items()},
            )
            if len(here) + 1 < len(processes):  # a host that is cut off takes longer to notice
                self.record.patience_s = self._heartbeat_s + _GRACE_S

    def depend_on(self, ranks: Collection[int], *, computes_on_cpu: bool) -> None:
        """These ranks work together with this one; others may end well at any time."""
        if self._guard is not None:
            self._guard.partners = ranks
            self._guard.computes_on_cpu = computes_on_cpu

    @contextmanager
    def failing_aloud(self) -> Iterator[None]:
        """An error of the body is told to the others, who would wait for this rank."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def leave_at_exit(self) -> None:
        """Have the process's normal end count as one, before whatever was registered earlier."""
        if self._heartbeat is not None:
            atexit.register(self._heartbeat.leave)

    def fail(self, error: BaseException) -> None:
        """Leave word of `error`, and watch the others no more: the program may go on."""
        self.record.publish(error, is_leaving=False)
        if self._heartbeat is not None:
            self._heartbeat.step_back()

    def close(self) -> None:
        """Leave well, and take back what marked this process as a rank. Idempotent."""
        if self._heartbeat is not None:
            self._heartbeat.leave()
            atexit.unregister(self._heartbeat.leave)
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._marks.close()


def _connect(world: World, attempt: int) -> tuple[Store, Store]:
    """A connection of its own to the meeting's store, and through it to the job's."""
    shared: Any = world.store  # torch's stubs lack both of what is used here
    store = shared.clone()
    return store, as_ranks_see(store._underlying_non_prefix_store, attempt)


def _place_of(launched: Launched | None) -> str:
    if launched is None:
        return "the store of the program's process group"
    host = "the launcher" if launched.has_launcher_store else "rank 0"
    return f"the job's store at {launched.master} (in {host})"
