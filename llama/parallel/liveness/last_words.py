"""The end of a process: a message, a postmortem on disk, and an exit that nothing can hold up.

The main thread and the heartbeat may both want to end it; whoever claims the word first speaks, and
the job's stderr has one message a rank.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from llama.log import rank_prefix
from llama.parallel.liveness.failure import Failure, within
from llama.parallel.liveness.postmortem import Postmortem

_PATIENCE_S = 2.0
"""A pipe that nobody reads, or a disk that does not answer, must not keep a rank alive."""
_END_S = 10.0


class LastWords:
    """One for a process."""

    def __init__(self, *, rank: int, host: str) -> None:
        self._rank = rank
        self._host = host
        self._claim = threading.Lock()
        self._pid = os.getpid()
        self.postmortem: Postmortem | None = None
        self.linger_s = 0.0
        """How long the others may read the record in a store that ends with this process."""

    def claim(self) -> bool:
        """Whether the caller may speak, and has to; False when another thread is at it."""
        return self._claim.acquire(blocking=False)

    def speak(self, lines: Sequence[str], *, exit_code: int, failure: Failure | None) -> NoReturn:
        """Print `lines`, each with the rank before it, and end the process.

        Rank 0 adds the traceback of a `failure` on another host, whose stderr may be out of sight.
        """
        if failure is not None and self._rank == 0 and failure.host != self._host:
            lines = [
                *lines,
                *(f"{failure.host}: {text}" for text in failure.traceback.splitlines()),
            ]
        prefix = rank_prefix(self._rank, self._host)
        text = "".join(f"{prefix} {line}\n" for line in lines if line)
        within(_PATIENCE_S, sys.stdout.flush)
        within(_PATIENCE_S, lambda: _print(text))
        if failure is not None and os.getpid() == self._pid:  # a forked child's end ends no job
            postmortem = self.postmortem
            if postmortem is not None:
                within(_PATIENCE_S, lambda: postmortem.write(failure))
            time.sleep(self.linger_s)
        os._exit(exit_code)

    def wait_for_the_end(self, exit_code: int) -> NoReturn:
        """Let the thread finish that has the word, within reason."""
        threading.Event().wait(_END_S)
        os._exit(exit_code)


def _print(text: str) -> None:
    # torch's excepthook, when it calls ours, has put a buffer in place of sys.stderr
    stderr = sys.__stderr__ or sys.stderr
    stderr.write(text)
    stderr.flush()
