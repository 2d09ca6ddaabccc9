"""What SIGTERM means during a call: run to their end what runs, start nothing, go at the next call.

Outside of calls a rank dies of the signal as every process does, wherever it waits. What a call is,
and what there is to finish, is the engine's business.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Drain:
    """One rank's readiness to stop. Without `is_enabled` nothing is ever asked of it."""

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_asked = False
        """Whether the signal came. Calls under way wind up; the next one raises SystemExit."""
        self._is_enabled = is_enabled
        self._pid = os.getpid()

    @contextmanager
    def possible(self) -> Iterator[None]:
        """For the length of the body a first SIGTERM only sets `is_asked`; a second one kills.

        Nothing changes where the program has a handler of its own, outside of the main thread, and
        inside another such body.
        """
        if not self._may_handle():
            yield
            return
        signal.signal(signal.SIGTERM, self._ask)
        _have_it_fire_once()
        if self.is_asked:  # it came before that
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            yield
        finally:
            # a generator may be closed by another thread, which may not do this
            if signal.getsignal(signal.SIGTERM) == self._ask and _is_main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _may_handle(self) -> bool:
        return (
            self._is_enabled
            and not self.is_asked
            and _is_main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.is_asked = True
        if os.getpid() != self._pid:  # a forked child has no call to finish
            os.kill(os.getpid(), signal.SIGTERM)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _have_it_fire_once() -> None:
    """Have the kernel itself forget the handler of SIGTERM once it was called, where that is known.

    Python runs its handlers between bytecodes only. A second signal must end the process as well
    while it waits in a collective, or computes, and has not come round to run the first one's.
    """
    with suppress(AttributeError, OSError):
        handler = ctypes.pythonapi.PyOS_getsig
        one_shot = ctypes.CDLL(None).sysv_signal  # System V's semantics; in glibc
        handler.restype, one_shot.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        one_shot.restype = ctypes.c_void_p
        one_shot(signal.SIGTERM, handler(int(signal.SIGTERM)))
