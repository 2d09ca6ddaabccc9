"""What a rank does with an exception that nobody caught: say it in one line, tell the others, go.

Going at once matters more than going cleanly: as long as one rank lingers in some atexit handler,
its peers wait for it.
"""

from __future__ import annotations

import select
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from llama.errors import LlamaError
from llama.parallel.liveness.failure import FailureRecord, describe, exit_code
from llama.parallel.liveness.last_words import LastWords

_REPLACED = "_llama_replaced"
_WORDS = "_llama_words"
_UNREAD = 128 + 13
"""As of a program that SIGPIPE ended: nobody reads its output on, which is no failure."""

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def install_hook(record: FailureRecord, words: LastWords) -> Callable[[], None]:
    """Make this process end at its first uncaught exception; returns what takes that back.

    stderr gets the error with the rank before every line: the message of our own errors, a
    traceback for any other. A hook that the program had set is called first. The exit status is the
    error's. Where the heartbeat is ending the process already, its words are the last ones.
    """
    previous: Hook = sys.excepthook
    previous = getattr(previous, _REPLACED, previous)  # of two of ours the newer one knows more
    # torch sets one with the default process group; it would print a traceback of every error
    home = getattr(previous, "__module__", None)
    is_the_programs = home not in ("sys", "torch.distributed.distributed_c10d")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        code = exit_code(error)
        if not words.claim():
            words.wait_for_the_end(code)
        if isinstance(error, BrokenPipeError) and _is_unread(sys.__stdout__):
            words.speak([], exit_code=_UNREAD, failure=None)
        first = None
        with suppress(BaseException):
            if not isinstance(error, KeyboardInterrupt):
                own = record.about_this_rank(describe(error), exit_code=code, error=error)
                record.publish(error)
                first = record.found or record.consequence or own
            if is_the_programs:
                previous(kind, error, trace)
        words.speak(report(error), exit_code=code, failure=first)

    setattr(hook, _REPLACED, previous)
    setattr(hook, _WORDS, words)
    sys.excepthook = hook

    def restore() -> None:
        if sys.excepthook is hook:
            sys.excepthook = previous

    return restore


def installed_words() -> LastWords | None:
    """Those of the hook that is installed: a process speaks once, whatever contexts it has."""
    return getattr(sys.excepthook, _WORDS, None)


def _is_unread(stream: TextIO | None) -> bool:
    """Whether it is a pipe or socket that the reader has closed."""
    with suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(stream.fileno() if stream else -1, select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def report(error: BaseException) -> list[str]:
    """The lines to print for `error`; every line of a message of ours that has several."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    if isinstance(error, LlamaError):
        lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
        return [f"{type(error).__name__}: {lines[0]}", *lines[1:]] if lines else [describe(error)]
    return "".join(traceback.format_exception(error)).splitlines()
