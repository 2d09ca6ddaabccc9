"""One rank as a copy of the launcher, which has imported torch for all of them.

What a `RankProcess` is outside, this is too: session, end with the launcher, cores, files, status.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Collection
from contextlib import ExitStack
from itertools import pairwise
from typing import NoReturn

from launch.fresh import forget_signal_handlers, run_as_fresh
from launch.process import Child, RankCommand, RankProcess, Streams, in_child

_FAILED = 1


class ForkedRank(RankProcess):
    """Only where `launch.fork_check` has nothing against it."""

    def _start(self, command: RankCommand, streams: Streams, ours: ExitStack) -> Child:
        bind = in_child(os.getpid(), command.cpus)
        # a handler of the launcher's must not run in the rank
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    os.setsid()
                    if bind is not None:
                        bind()
                    _take_streams(streams)
                    _close_all_but(command.pass_fds)
                    ours.close()
                    forget_signal_handlers()
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                except BaseException:
                    _give_up()
                _run(command)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Forked(pid)


class _Forked:
    """A child of this process that nobody else waits for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self) -> int:
        exit_code = self._collect(0)
        assert exit_code is not None
        return exit_code

    def _collect(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _run(command: RankCommand) -> NoReturn:
    """Nothing comes back from here to the launcher's own frames, whose `finally` end ranks."""
    try:
        run_as_fresh(command.words, command.environ)
    except BaseException:
        _give_up()


def _give_up() -> NoReturn:
    try:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(_FAILED)


def _take_streams(given: Streams) -> None:
    """As `subprocess.Popen` does: None leaves the launcher's own, DEVNULL leads nowhere."""
    # first out of the way: one of them may have the number that another one is to get
    fds = [os.open(os.devnull, os.O_RDWR) if fd == subprocess.DEVNULL else fd for fd in given]
    moved = [fd if fd is None or fd > 2 else _above_streams(fd) for fd in fds]
    for target, fd in enumerate(moved):
        if fd is not None:
            os.dup2(fd, target)


def _above_streams(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _close_all_but(kept: Collection[int]) -> None:
    most = os.sysconf("SC_OPEN_MAX")
    for fd in kept:
        os.set_inheritable(fd, True)
    for below, above in pairwise([2, *sorted(kept), most]):
        os.closerange(below + 1, above)
