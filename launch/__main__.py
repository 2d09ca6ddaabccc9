"""`python -m launch [options] script.py args...`, also installed as `llama-launch`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Literal, NoReturn

from launch import console, env
from launch.hardware import probe
from launch.spawn import LaunchRequest, launch, plan, show
from llama.errors import LlamaError, UsageError

EPILOG = """\
Options before the program are the launcher's, everything after it is the program's own.
A program finds --tp, --pp, --backend and --device in LLAMA_TP_SIZE, LLAMA_PP_SIZE,
LLAMA_BACKEND and LLAMA_DEVICE, where Llama.build and LLM look for them.
This launcher runs on one machine; for more of them use torchrun.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def _nproc(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return int(text)


def parse(argv: Sequence[str]) -> tuple[LaunchRequest, bool]:
    """The request, and whether it is only a dry run. Raises UsageError."""
    given = {name: text for name, text in os.environ.items() if text}
    parser = _Parser(
        prog="launch",
        description="Run a program on several ranks of this machine.",
        usage="python -m launch [options] (script.py | -m module) [args...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--nproc", "--nproc_per_node", "--nproc-per-node", type=_nproc, metavar="N|auto",
        help="ranks; by default tp x pp, or one a GPU (auto), or one where there is no GPU",
    )  # fmt: skip
    parser.add_argument(
        "--tp", type=int, default=given.get(env.TP_SIZE), help="tensor parallel size"
    )
    parser.add_argument(
        "--pp", type=int, default=given.get(env.PP_SIZE), help="pipeline parallel size"
    )
    parser.add_argument(
        "--backend", default=given.get(env.BACKEND), help="gloo or nccl, instead of what fits"
    )
    parser.add_argument(
        "--device", default=given.get(env.DEVICE), help="cpu, cuda or mps, instead of what fits"
    )
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true",
        help="print the equivalent torchrun command and start nothing",
    )  # fmt: skip
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("program", help="script.py, or with -m the name of a module")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="the program's own arguments")
    options = parser.parse_args(argv)
    request = LaunchRequest(
        program=(*(["-m"] if options.module else []), options.program, *options.args),
        nproc=options.nproc,
        tp=options.tp,
        pp=options.pp,
        backend=options.backend,
        device=options.device,
    )
    return request, options.dry_run


def main(argv: Sequence[str] | None = None) -> int:
    """Launch what `argv` says (default: the command line of this process); the exit status."""
    try:
        request, dry_run = parse(sys.argv[1:] if argv is None else argv)
        if not dry_run:
            return launch(request)
        machine = probe()
        job = plan(request, machine)
        show(job, machine)
        print(job.as_torchrun)
    except LlamaError as error:
        console.say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.say("stopped before any rank was started")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
