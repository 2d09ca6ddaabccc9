"""What a rank does with an exception that nobody caught: say it in one line, tell the others, go.

Going at once matters more than going cleanly: as long as one rank lingers in some atexit handler,
its peers wait for it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from llama.errors import LlamaError
from llama.log import rank_prefix
from llama.parallel.failure import FailureRecord, describe

_INTERRUPTED = 130
_UNEXPECTED = 1
_REPLACED = "_llama_replaced"

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def install_hook(failure: FailureRecord, *, rank: int, host: str) -> Callable[[], None]:
    """Make this process end at its first uncaught exception; returns what takes that back.

    stderr gets the error with the rank before every line: one line for our own errors, a traceback
    for any other. A hook that the program had set is called first. The exit status is the error's.
    """
    previous: Hook = sys.excepthook
    previous = getattr(previous, _REPLACED, previous)  # of two of ours the newer one knows more
    # torch sets one with the default process group; it would print a traceback of every error
    home = getattr(previous, "__module__", None)
    is_the_programs = home not in ("sys", "torch.distributed.distributed_c10d")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        with suppress(BaseException):
            if not isinstance(error, KeyboardInterrupt):
                failure.write(error)
            if is_the_programs:
                previous(kind, error, trace)
            sys.stdout.flush()
            prefix = rank_prefix(rank, host)
            # torch's own hook, when it calls this one, has put a buffer in place of sys.stderr
            stderr = sys.__stderr__ or sys.stderr
            stderr.write("".join(f"{prefix} {line}\n" for line in report(error)))
            stderr.flush()
        os._exit(exit_code(error))

    setattr(hook, _REPLACED, previous)
    sys.excepthook = hook

    def restore() -> None:
        if sys.excepthook is hook:
            sys.excepthook = previous

    return restore


def report(error: BaseException) -> list[str]:
    """The lines to print for `error`."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    if isinstance(error, LlamaError):
        return [describe(error)]
    return "".join(traceback.format_exception(error)).splitlines()


def exit_code(error: BaseException) -> int:
    """The process status for an uncaught `error`."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return error.exit_code if isinstance(error, LlamaError) else _UNEXPECTED
