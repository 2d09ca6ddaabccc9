"""The signals that the launcher gets, collected for its main loop, and whose Ctrl-C is.

An exception raised by a signal handler may come between a rank's start and its entry in the list of
those to end, which leaves the rank behind. So the handler only takes a note.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

FORWARDED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""For the ranks' program: SLURM can send one before a time limit."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class ReceivedSignals:
    """While entered, signals for a program or about its end are noted instead. Main thread only.

    One that was ignored before (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self._notes: deque[signal.Signals] = deque()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> ReceivedSignals:
        for signum in (*STOP_SIGNALS, signal.SIGTSTP, *FORWARDED_SIGNALS):
            before = signal.getsignal(signum)
            if before != signal.SIG_IGN:
                self._before[signum] = before
                signal.signal(signum, self._note)
        # where it is ignored, as it may be by inheritance, the ends of children are not to be known
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def take(self) -> list[signal.Signals]:
        """What came since the last call, in order."""
        taken = []
        while self._notes:
            taken.append(self._notes.popleft())
        return taken

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._notes.append(signal.Signals(signum))


@contextmanager
def exiting_on_interrupt() -> Iterator[None]:
    """While entered, Ctrl-C ends this process with one line, for when there is nothing to clean.

    However often it comes and wherever: KeyboardInterrupt would need somebody to catch the next.
    """
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(2, b"launch: stopped\n")
        os._exit(128 + signum)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, before)


def ignore_further_stops() -> None:
    """For a process that is about to exit with a status of its own: no signal shall change that.

    Python's exit puts the default back where a handler is, and a signal then would kill us.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class Conversation:
    """A pipe on which rank 0 says whether Ctrl-C is for it: "1" for yes, "0" for no.

    A file would do as well, but somebody would have to remove it after a launcher that was killed.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._last = b"0"

    def takes_interrupts(self) -> bool:
        """The last word of rank 0. To be asked regularly, or the pipe fills up."""
        with suppress(BlockingIOError):
            while said := os.read(self._reader, 4096):
                self._last = said[-1:]
        return self._last == b"1"

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.close(self.writer)
