"""A rank ends with its launcher: without one, nobody would end it when the others are gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""See prctl(2). The signal comes when the thread ends that started this process."""


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """Have the kernel kill this process when its launcher ends (Linux; elsewhere nothing).

    Only when the parent is the launcher itself: a wrapper in between may end before this process.
    """
    parent = os.getppid()
    if sys.platform != "linux" or not _is_launcher(parent, environ):
        return
    with suppress(OSError, AttributeError):  # another libc may not have it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended meanwhile
        os.kill(os.getpid(), signal.SIGKILL)


def _is_launcher(pid: int, environ: Mapping[str, str]) -> bool:
    """Ours gives its pid. torchrun's agent does not, but is not in the run that it has started."""
    ours = environ.get("LLAMA_LAUNCHER_PID")
    if ours:
        return ours == str(pid)
    run_id = environ.get("TORCHELASTIC_RUN_ID")
    if not run_id:
        return False
    with suppress(OSError):
        own = f"TORCHELASTIC_RUN_ID={run_id}".encode()
        return own not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
