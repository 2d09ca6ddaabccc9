"""`python -m launch.preflight`: a program for the ranks of a job that finds out if a job can run.

Started like any other program, by `llama-launch preflight`, torchrun or srun. It meets as a job
does, looks at every host, tries every way between them, connects as a job does, and measures what
the links carry. Rank 0 tells; every rank exits with 0 or the status of what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from launch.preflight.doors import Share, visit_all
from launch.preflight.hosts import RankFacts, find_facts, hosts_of
from launch.preflight.links import measure_links
from launch.preflight.report import Report, Teller, say
from llama.config import ParallelConfig
from llama.errors import LlamaError, UsageError
from llama.log import rank_prefix
from llama.parallel.backend import parse_device
from llama.parallel.context import initialize
from llama.parallel.meeting.launched import Launched
from llama.parallel.meeting.rendezvous import meet, own_rank, share_through_store
from llama.parallel.wish import with_environment

SECONDS = 4.0
LINK_TIMEOUT_S = 30.0
"""How much longer than all measuring one message may take before its link counts as broken."""


@dataclass(frozen=True)
class Options:
    """`seconds` is for measuring links, all together; only rank 0 writes `json_file`."""

    seconds: float = SECONDS
    json_file: Path | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def parse(argv: Sequence[str]) -> Options:
    """Raises UsageError."""
    parser = _Parser(
        prog="llama-launch preflight",
        description="Find out whether a job can run on these ranks: hosts, ports, clocks, links.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="measure links for about so long at most (default 4)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, in bytes and seconds"
    )
    given = parser.parse_args(argv)
    if not 0 < given.seconds < 3600:
        raise UsageError(f"--seconds must be above 0 and below 3600, got {given.seconds}")
    return Options(given.seconds, given.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the job that this process is a rank of; the exit status.

    Raises what `initialize` raises in a process that was launched: its hook tells the others.
    """
    launched = None
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        launched = Launched.from_environment(os.environ)
        patience_s = options.seconds + LINK_TIMEOUT_S  # the last link waits for all the others
        config = with_environment(
            ParallelConfig(timeout_s=patience_s, control_timeout_s=patience_s), os.environ
        )
        rank, share, report = look_around(launched, config)
        teller = Teller(options.json_file) if rank == 0 else None
        if teller:
            teller.begin(report)
    except LlamaError as error:
        return _refuse(error, rank=launched.rank if launched else 0)
    if report.exit_code == 0:
        try:
            report = try_links(report, config, seconds=options.seconds)
        except LlamaError as error:
            if teller:
                teller.give_up(report, error)
            if own_rank(launched) is not None:
                raise
            return _refuse(error, rank=rank)
    if teller:
        teller.end(report)
    share("")  # the first rank to leave with an error has the others ended
    return report.exit_code


def look_around(launched: Launched | None, config: ParallelConfig) -> tuple[int, Share, Report]:
    """Meet, look at every host, try every way between them: what needs no process group.

    This rank, what it shares texts by, and what was found. Collective.
    """
    world = meet(launched, timeout_s=config.limit_s("init_timeout_s"))

    def share(text: str) -> list[str]:
        return share_through_store(world, text) if world else [text]

    rank = world.rank if world else 0
    _, cuda_index = parse_device(config.device)
    local_rank = world.local_rank if world else None
    mine = find_facts(rank=rank, local_rank=local_rank, cuda_index=cuda_index)
    facts = [RankFacts(**json.loads(text)) for text in share(json.dumps(asdict(mine)))]
    hosts = hosts_of(facts)
    visits = visit_all(rank, [host.first_rank for host in hosts], share)
    return rank, share, Report(hosts, visits)


def try_links(report: Report, config: ParallelConfig, *, seconds: float) -> Report:
    """Connect as a job does, and measure what was connected. Collective."""
    context = initialize(config)
    if context.rank == 0:
        choice, transport = context.backend, context.transport
        say(f"device {context.device.type}, backend {choice.name}: {choice.reason}")
        say(f"transport {transport.name}: {transport.reason}")
    measured = measure_links(context, seconds=seconds)
    context.close()
    return replace(report, measured=measured)


def _refuse(error: LlamaError, *, rank: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"{rank_prefix(rank, socket.gethostname())} error: {error}\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
