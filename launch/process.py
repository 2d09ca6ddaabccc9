"""One rank as a process: in a session of its own, gone with its launcher and with all it started.

Knows no store and no other rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

from llama.errors import HardwareError

_PR_SET_PDEATHSIG = 1

Streams = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class RankCommand:
    """What to start for the rank of this number in the whole job.

    `cpus` are the cores that it stays on, none for all. The files of `pass_fds` stay open in it.
    With `is_forked` it is a copy of this process, and `words` are (python, "-u", program, ...).
    """

    rank: int
    words: tuple[str, ...]
    environ: Mapping[str, str]
    cpus: frozenset[int] = frozenset()
    pass_fds: tuple[int, ...] = ()
    is_forked: bool = False


class Child(Protocol):
    """What is asked of a started process, as `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


class RankProcess:
    """A started rank. Whatever it leaves behind in its process group is killed when it ends."""

    def __init__(
        self,
        command: RankCommand,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        """Start it. For the main thread only: the system ends the rank together with that thread.

        Raises HardwareError when the system cannot start one more process.
        """
        self.rank = command.rank
        with ExitStack() as ours:
            # a store has threads; what runs before exec takes no lock that one of them may hold
            ours.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            try:
                self._process = self._start(command, (stdin, stdout, stderr), ours)
            except (OSError, subprocess.SubprocessError) as error:
                raise HardwareError(f"cannot start rank {command.rank}: {error}") from error

    def _start(self, command: RankCommand, streams: Streams, ours: ExitStack) -> Child:
        """`ours` is what a process that is no launcher has to leave."""
        stdin, stdout, stderr = streams
        return subprocess.Popen(
            command.words,
            env=dict(command.environ),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=command.pass_fds,
            preexec_fn=in_child(os.getpid(), command.cpus),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, minus the signal's number for a killed rank; None while it runs."""
        if self._process.returncode is None and self._has_ended():
            # not collected yet, so the number of its process group cannot be anybody else's
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def send(self, signum: signal.Signals) -> None:
        """Signal the rank; SIGKILL goes to its whole process group. Nothing when it has ended."""
        if self.poll() is not None:
            return
        if signum == signal.SIGKILL:
            self._signal_group(signum)
        else:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it and its process group now, and wait for it."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def _signal_group(self, signum: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)


def in_child(launcher: int, cpus: Collection[int]) -> Callable[[], None] | None:
    """What a new process does to itself before it becomes the rank; None off Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != launcher:  # it died before the line above
            os._exit(128 + signal.SIGKILL)
        if cpus:
            with suppress(OSError):  # the cores have been taken from us meanwhile
                os.sched_setaffinity(0, cpus)

    return bind
