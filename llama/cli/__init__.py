"""The `llama` command: `llama COMMAND ...`, each command in a file of its own.

A command is a function that describes a run; nothing runs before every word has been understood.
Those that need ranks start their own with --tp or --pp, the others run in this process. Help,
--version and wrong usage are answered without torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from llama import __version__
from llama.errors import LlamaError

HELP = """\
usage: llama COMMAND ...
       llama COMMAND --help
       llama --version

commands:
  generate  complete prompts
  chat      talk with a chat model
  score     perplexity of a text file
  inspect   what a checkpoint holds: format, sizes, every tensor, and what is odd
  plan      memory, reads and traffic of every rank, before anything is loaded
  convert   write a checkpoint in another format, shard count or dtype
  bench     how fast this machine is, and this package and its peers on it

CKPT_DIR may be a folder of any format that `llama inspect` knows.
"""
COMMANDS = {
    "generate": "llama.cli.generate:generate",
    "chat": "llama.cli.chat:chat",
    "score": "llama.cli.score:score",
    "inspect": "llama.cli.inspect:inspect",
    "plan": "llama.cli.plan:plan",
    "convert": "llama.cli.convert:convert",
    "bench": "llama.cli.bench:bench",
}
_STOPPED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + 13  # SIGPIPE, which Windows has not
# An uncaught error reaches the hook of a rank, which tells the others and names the rank. torch
# puts its own, which calls that one, in front.
_RANK_HOOKS = ("llama.parallel.liveness.uncaught", "torch.distributed.distributed_c10d")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); returns the exit status."""
    from llama.cli.terminal import say

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would break off the exit
        say("llama: stopped")
        return _STOPPED
    except BrokenPipeError:  # `llama ... | head`: nobody reads on, and that is no error
        _discard_stdout()
        return _PIPE_CLOSED
    except LlamaError as error:
        if getattr(sys.excepthook, "__module__", None) in _RANK_HOOKS:
            raise
        say(f"llama: error: {error}")
        return error.exit_code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"llama {__version__}")
        return 0
    from llama.cli.words import find, understand

    if "--help" in words or "-h" in words:
        from llama.cli.help import help_text

        print(help_text(find(COMMANDS, words[0]), name=words[0]))
        return 0
    command = understand(COMMANDS, words)
    from llama.cli.ranks import RankCommand, is_rank, start

    if isinstance(command, RankCommand):
        if is_rank():
            # one from sitecustomize would print a traceback of what is one line here
            sys.excepthook = sys.__excepthook__
        elif command.model.needs_ranks:
            return start(words, command)
    command.run()
    return 0


def _discard_stdout() -> None:
    """What is still buffered goes nowhere, or the interpreter would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
