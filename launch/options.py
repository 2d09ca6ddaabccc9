"""The launcher's command line, as a request."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from launch import env
from launch.nodes import DEFAULT_PORT, NodeRequest
from launch.request import LaunchRequest
from launch.supervisor import GRACE_S
from llama.config import TIME_LIMITS
from llama.errors import UsageError

EPILOG = """\
Options before the program are the launcher's, everything after it is the program's own. Options may
be written with dashes or underscores. A program finds --tp, --pp, --backend, --device, --transport
in LLAMA_TP_SIZE, LLAMA_PP_SIZE, LLAMA_BACKEND, LLAMA_DEVICE, LLAMA_TRANSPORT, and time limits in
LLAMA_INIT_TIMEOUT_S and so on, where Llama.build and LLM look for them.
`launch [options] preflight` runs a check of these ranks, their hosts and the links between them.
"""
PREFLIGHT = "preflight"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def parse(argv: Sequence[str]) -> tuple[LaunchRequest, bool]:
    """The request, and whether it is only a dry run. Raises UsageError."""
    options = _parser().parse_args(argv)
    is_preflight = (
        options.program == PREFLIGHT and not options.module and not Path(PREFLIGHT).exists()
    )
    limits_s = {name: getattr(options, name.removesuffix("_s")) for name in TIME_LIMITS}
    request = LaunchRequest(
        program=_program(options, is_preflight=is_preflight),
        nproc=options.nproc,
        tp=options.tp,
        pp=options.pp,
        backend=options.backend,
        device=options.device,
        transport=options.transport,
        nodes=NodeRequest(
            nnodes=options.nnodes,
            node_rank=options.node_rank,
            master_addr=options.master_addr,
            master_port=options.master_port,
            job_id=options.job_id,
        ),
        limits_s={name: limit for name, limit in limits_s.items() if limit is not None},
        shutdown_timeout_s=options.shutdown_timeout,
        log_dir=options.log_dir,
        has_prefix=not (options.no_prefix or is_preflight),  # it prints one table
        has_affinity=not options.no_affinity,
        has_fork=not options.no_fork,
    )
    return request, options.dry_run


def _program(options: argparse.Namespace, *, is_preflight: bool) -> tuple[str, ...]:
    if is_preflight:
        return ("-m", f"launch.{PREFLIGHT}", *options.args)
    return (*(["-m"] if options.module else []), options.program, *options.args)


def _parser() -> _Parser:
    parser = _Parser(
        prog="launch",
        description="Run a program on several ranks of this machine, or of several machines.",
        usage="python -m launch [options] (script.py | -m module | preflight) [args...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_ranks(parser)
    _add_nodes(parser)
    _add_limits(parser)
    _add_output(parser)
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("program", help="script.py, or with -m the name of a module")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="the program's own arguments")
    return parser


def _add_ranks(parser: _Parser) -> None:
    parser.add_argument(
        "--nproc", "--nproc_per_node", "--nproc-per-node", type=_nproc, metavar="N|auto",
        help="ranks of this machine; by default tp x pp, or one a GPU (auto), or one",
    )  # fmt: skip
    _option(parser, "tp", type=int, default=_given_size(env.TP_SIZE), help="tensor parallel size")
    _option(parser, "pp", type=int, default=_given_size(env.PP_SIZE), help="pipeline parallel size")
    how = "instead of what fits"
    _option(parser, "backend", default=_given(env.BACKEND), help=f"gloo or nccl, {how}")
    _option(parser, "device", default=_given(env.DEVICE), help=f"cpu, cuda or mps, {how}")
    _option(
        parser, "transport", default=_given(env.TRANSPORT),
        help="shm or gloo between ranks of one host; auto is shm for ranks that compute on a CPU",
    )  # fmt: skip
    _option(parser, "no_affinity", action="store_true", help="let ranks use each other's cores")
    _option(parser, "no_fork", action="store_true", help="start a new interpreter for every rank")


def _add_nodes(parser: _Parser) -> None:
    group = parser.add_argument_group("several machines, with one launcher on each")
    _option(group, "nnodes", type=int, default=1, metavar="N", help="how many machines")
    _option(group, "node_rank", type=int, default=0, metavar="N", help="which one this is, from 0")
    _option(group, "master_addr", metavar="HOST", help="name or address of the one that is 0")
    _option(
        group, "master_port", type=int, metavar="PORT", help=f"a free port there ({DEFAULT_PORT})"
    )
    _option(
        group, "job_id", default=_given(env.JOB_ID) or "", metavar="TEXT",
        help="the same on all machines, and another for each job",
    )  # fmt: skip


def _add_limits(parser: _Parser) -> None:
    group = parser.add_argument_group("time limits, in seconds")
    meaning = {
        "init_timeout_s": "for all ranks to come",
        "load_timeout_s": "for one tensor to load",
        "step_timeout_s": "for one layer to be computed",
        "heartbeat_timeout_s": "for a sign of life of every rank; 0 looks for none",
    }
    for name, default in TIME_LIMITS.items():
        _option(
            group, name.removesuffix("_s"), type=float, metavar="S",
            help=f"{meaning[name]} ({default:g})",
        )  # fmt: skip
    _option(
        group, "shutdown_timeout", type=float, default=GRACE_S, metavar="S",
        help=f"for ranks to finish after SIGTERM ({GRACE_S:g})",
    )  # fmt: skip


def _add_output(parser: _Parser) -> None:
    group = parser.add_argument_group("output")
    _option(
        group, "log_dir", type=Path, default=_given(env.LOG_DIR), metavar="FOLDER",
        help="write what rank N says to rank-N.log there too, and postmortem.json after a failure",
    )  # fmt: skip
    _option(group, "no_prefix", action="store_true", help="do not say which rank wrote a line")
    _option(
        group, "dry_run", action="store_true",
        help="print the equivalent torchrun command and start nothing",
    )  # fmt: skip


def _option(group: argparse._ActionsContainer, name: str, **how: Any) -> None:
    """Add --name, spelled with underscores and with dashes."""
    group.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **how)


def _given(variable: str) -> str | None:
    return os.environ.get(variable) or None


def _given_size(variable: str) -> int | None:
    text = _given(variable)
    if text and not text.isdecimal():
        raise UsageError(f"{variable} must be a whole number, got {text!r}")
    return int(text) if text else None


def _nproc(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return int(text)
