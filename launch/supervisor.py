"""Starts the ranks of this machine, watches them, and ends them all together.

Commands go in, how the ranks ended comes out; models, layouts and machines are not known here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from launch.fork import ForkedRank
from launch.logs import RankOutput
from launch.outcome import PIPE_CLOSED, Outcome, RankEnd
from launch.process import RankCommand, RankProcess
from launch.stops import FORWARDED_SIGNALS, Conversation, ReceivedSignals
from llama.parallel.liveness.neighbours import is_stopped

POLL_S = 0.1
LAST_WORDS_S = 2.0
"""After a failure the other ranks have this long to say by themselves what happened."""
GRACE_S = 5.0
"""From SIGTERM to SIGKILL; after a failure, when nothing is left to finish, at most."""
TWICE_S = 0.2
"""A rank that finishes its work at the first SIGTERM goes at the second one, so much later."""
UNREAD_S = 5.0
"""How long a console that nobody reads (a pager, a halted terminal) holds up a job that failed."""


@dataclass(frozen=True)
class Order:
    """A signal that all ranks get, or only those that are halted."""

    at_s: float
    signum: signal.Signals
    only_stopped: bool = False


class Supervisor:
    """The running ranks of this launcher. For the main thread only: it takes over signals.

    `grace_s` is how long ranks may go on after a signal told the job to end. `announce` is called
    with the first rank that ended badly, `announce_stop` with the signal that ends the job, and
    `lost` says which other launcher is gone. `started` is called once all ranks have been started,
    and may raise, which ends them.
    """

    def __init__(
        self,
        output: RankOutput,
        *,
        grace_s: float = GRACE_S,
        conversation: Conversation | None = None,
        announce: Callable[[RankEnd], None] = lambda end: None,
        announce_stop: Callable[[signal.Signals], None] = lambda signum: None,
        lost: Callable[[], str | None] = lambda: None,
        started: Callable[[], object] = lambda: None,
    ) -> None:
        self._output = output
        self._grace_s = grace_s
        self._conversation = conversation
        self._announce = announce
        self._announce_stop = announce_stop
        self._is_stop_announced = False
        self._lost = lost
        self._started = started
        self._ranks: list[RankProcess] = []
        self._running: list[RankProcess] = []
        self._ends: list[RankEnd] = []
        self._orders: list[Order] | None = None
        self._was_told = False
        self._stopped_by: signal.Signals | None = None
        self._lost_node: str | None = None

    def run(self, commands: Sequence[RankCommand]) -> Outcome:
        """Run every command to its end, or end them all after the first that fails.

        SIGINT, SIGTERM, SIGHUP and SIGQUIT end the job, a second one at once; while rank 0 is in
        conversation it gets SIGINT instead. Raises HardwareError when a rank cannot be started.
        """
        with ReceivedSignals() as signals:
            try:
                for command in commands:
                    self._start(command)
                self._started()
                self._output.start()
                while self._running:
                    self._heed(signals.take())
                    self._look()
                    self._carry_out()
                    time.sleep(POLL_S if self._running else 0)
                until_s = time.monotonic() + (inf if self._orders is None else UNREAD_S)
                while not self._output.finish():
                    if signals.take() or time.monotonic() > until_s:
                        break
            finally:
                for rank in self._ranks:
                    rank.kill()
        return Outcome(tuple(self._ends), self._stopped_by, self._lost_node)

    def _start(self, command: RankCommand) -> None:
        stdout, stderr = self._output.streams(command.rank)
        stdin = None if command.rank == 0 else subprocess.DEVNULL
        try:
            kind = ForkedRank if command.is_forked else RankProcess
            rank = kind(command, stdin=stdin, stdout=stdout, stderr=stderr)
        finally:
            for fd in (stdout, stderr):
                if fd is not None:
                    os.close(fd)
        self._ranks.append(rank)
        self._running.append(rank)

    def _heed(self, received: Sequence[signal.Signals]) -> None:
        is_talking = self._conversation is not None and self._conversation.takes_interrupts()
        for signum in received:
            if signum == signal.SIGTSTP:
                self._pause()
            elif signum in FORWARDED_SIGNALS:
                for rank in self._running:
                    rank.send(signum)
            elif signum == signal.SIGINT and is_talking and self._stopped_by is None:
                self._ranks[0].send(signum)
            elif self._stopped_by is None and self._orders is None:
                self._stopped_by = signum
                is_urgent = signum in (signal.SIGINT, signal.SIGQUIT)
                if is_urgent:
                    self._tell_stop()
                self._plan(self._ending(0) if is_urgent else self._draining())
            else:
                self._plan([Order(0, signal.SIGKILL)])

    def _look(self) -> None:
        """See who has ended, and whether that ends the job."""
        now = time.monotonic()
        for rank in tuple(self._running):
            exit_code = rank.poll()
            if exit_code is not None:
                self._running.remove(rank)
                self._ends.append(RankEnd(rank.rank, exit_code, now, rank.pid, self._was_told))
        if any(end.exit_code for end in self._ends):
            self._tell_stop()
        if self._orders is not None:
            is_failing = self._stopped_by is None and bool(self._running)
            if is_failing and all(is_stopped(rank.pid) for rank in self._running):
                self._plan([Order(0, signal.SIGKILL)])  # nobody is left to say anything
            return
        cause = Outcome(tuple(self._ends)).cause
        if cause is not None and cause.exit_code == PIPE_CLOSED:
            self._plan(self._ending(0))
        elif cause is not None:
            self._announce(cause)
            self._plan(self._ending(LAST_WORDS_S))
        elif (lost := self._lost()) is not None:
            self._lost_node = lost
            self._plan(self._ending(LAST_WORDS_S))

    def _tell_stop(self) -> None:
        """Once: before ranks are killed, or when the first has gone without finishing its work."""
        if self._stopped_by is not None and not self._is_stop_announced:
            self._is_stop_announced = True
            self._announce_stop(self._stopped_by)

    def _draining(self) -> list[Order]:
        """The orders for ranks that may finish their work."""
        return [Order(0, signal.SIGTERM), Order(self._grace_s, signal.SIGKILL)]

    def _ending(self, after_s: float) -> list[Order]:
        """The orders for ranks that shall go at once."""
        return [
            Order(after_s, signal.SIGTERM),
            Order(after_s, signal.SIGKILL, only_stopped=True),
            Order(after_s + TWICE_S, signal.SIGTERM),
            Order(after_s + min(self._grace_s, GRACE_S), signal.SIGKILL),
        ]

    def _plan(self, orders: Sequence[Order]) -> None:
        """Give `orders` from now on, in place of earlier ones."""
        now = time.monotonic()
        self._orders = [Order(now + o.at_s, o.signum, o.only_stopped) for o in orders]

    def _carry_out(self) -> None:
        while self._orders and self._orders[0].at_s <= time.monotonic():
            order = self._orders.pop(0)
            self._was_told = True
            for rank in self._running:
                if not order.only_stopped or is_stopped(rank.pid):
                    rank.send(order.signum)

    def _pause(self) -> None:
        """Ctrl-Z: halt ranks and launcher together, until somebody lets the launcher go on."""
        for rank in self._running:
            rank.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for rank in self._running:
            rank.send(signal.SIGCONT)
