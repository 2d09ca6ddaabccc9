"""The `llama` command.

With --tp or --pp it starts its own ranks: it runs itself again under `launch`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

import fire
from fire.core import FireExit

from llama.cli.chat import Chat
from llama.cli.flags import chat, generate
from llama.cli.generate import Generate
from llama.cli.terminal import say
from llama.errors import LlamaError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        # fire only reads the words: nothing runs before every one of them has been understood
        command = fire.Fire(
            {"generate": generate, "chat": chat}, command=words, name="llama", serialize=_nothing
        )
        if not isinstance(command, Generate | Chat):
            raise UsageError(f"cannot understand: llama {shlex.join(words)}")
        if not _is_rank() and command.model.n_ranks > 1:
            return _start_ranks(words, command)
        command.run()
    except FireExit as end:
        return UsageError.exit_code if end.code == 2 else int(end.code or 0)
    except KeyboardInterrupt:
        say("llama: stopped")
        return 130
    except LlamaError as error:
        if sys.excepthook is not sys.__excepthook__:
            raise  # a rank among several has a hook that tells the others and names itself
        say(f"llama: error: {error}")
        return error.exit_code
    return 0


def _start_ranks(words: Sequence[str], command: Generate | Chat) -> int:
    from launch.spawn import LaunchRequest, launch

    model = command.model
    request = LaunchRequest(
        program=("-m", "llama.cli", *words),
        nproc=model.n_ranks,
        tp=model.tp,
        pp=model.pp,
        backend=model.backend,
        device=model.device,
    )
    return launch(request, forward_interrupt=isinstance(command, Chat))


def _is_rank() -> bool:
    return "RANK" in os.environ


def _nothing(result: object) -> None:
    """fire prints what a command returns; ours is only read."""
