"""What a preflight found, as tables on stdout and as JSON. Measures nothing and judges nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from launch.preflight.doors import Visit
from launch.preflight.hosts import Host, RankFacts
from launch.preflight.links import LARGE, SMALL, LinkFigures, Measured
from launch.preflight.verdict import (
    Finding,
    exit_code,
    judge_hosts,
    judge_links,
    judge_visits,
)
from llama.cli.table import print_table
from llama.errors import LlamaError, UsageError

_UNKNOWN = "-"
_HOST_COLUMNS = (
    "host", "ranks", "devices", "cores", "threads", "RAM free GiB", "shm free MiB", "GPU free GiB",
    "reached by", "round trip ms", "clock ahead ms",
)  # fmt: skip
_LINK_COLUMNS = (
    "link", "ranks", "hosts", "call", f"{SMALL.n_bytes // 1024} KiB median us",
    f"{SMALL.n_bytes // 1024} KiB p95 us", "tries", f"{LARGE.n_bytes // 1024**2} MiB GB/s",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What is known so far; all there is to know when `is_complete`.

    `problem` is what ended the preflight before its end.
    """

    hosts: Sequence[Host]
    visits: Sequence[Visit] = ()
    measured: Measured = field(default_factory=Measured)
    problem: Finding | None = None
    is_complete: bool = False

    @property
    def names(self) -> dict[int, str]:
        """The host of each rank."""
        return {rank.rank: host.name for host in self.hosts for rank in host.ranks}

    @property
    def findings(self) -> list[Finding]:
        return [
            *judge_hosts(self.hosts),
            *judge_visits(self.visits, self.names),
            *judge_links(self.measured.wrong, self.names),
            *([self.problem] if self.problem else []),
        ]

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def as_json(self) -> str:
        """All that the tables show and more, in bytes and seconds."""
        return json.dumps(
            {
                "ranks": [asdict(rank) for host in self.hosts for rank in host.ranks],
                "visits": [asdict(visit) for visit in self.visits],
                "links": [asdict(link) for link in self.measured.figures],
                "findings": [asdict(finding) for finding in self.findings],
                "exit_code": self.exit_code if self.is_complete else None,
            },
            indent=2,
        )


@dataclass(frozen=True)
class Teller:
    """Prints a report as it grows, and keeps it in `json_file` if there is one."""

    json_file: Path | None = None

    def begin(self, report: Report) -> None:
        """A row a host, and what all of them have in common. Raises UsageError as `save` does."""
        ranks = [rank for host in report.hosts for rank in host.ranks]
        say(f"{len(ranks)} rank(s) on {len(report.hosts)} host(s)")
        print_table(_HOST_COLUMNS, [_host_row(host, report.visits) for host in report.hosts])
        for versions in dict.fromkeys(_versions(rank) for rank in ranks):
            who = [rank for rank in ranks if _versions(rank) == versions]
            say(f"{_who(who, n_ranks=len(ranks))}: {versions}")
        for problem in dict.fromkeys(rank.device_problem for rank in ranks):
            if problem:
                who = [rank for rank in ranks if rank.device_problem == problem]
                say(f"{_who(who, n_ranks=len(ranks))}: no CUDA: {problem}")
        self.save(report)

    def end(self, report: Report) -> None:
        """A row a group or link, what is wrong or doubtful, and whether a job can run."""
        links = report.measured.figures
        if links:
            print_table(_LINK_COLUMNS, [_link_row(link, report.names) for link in links])
        findings, code = report.findings, report.exit_code
        for finding in findings:
            say(f"{'error' if finding.exit_code else 'warning'}: {finding.text}")
        n_warnings = sum(not finding.exit_code for finding in findings)
        warnings = f"; {n_warnings} warning(s)" if n_warnings else ""
        say(f"preflight failed, exit status {code}{warnings}" if code else f"ready{warnings}")
        try:
            self.save(replace(report, is_complete=True))
        except UsageError as error:  # the disk has filled up meanwhile
            say(f"warning: {error}")

    def give_up(self, report: Report, error: LlamaError) -> None:
        """Keep what is known; somebody else prints `error`."""
        problem = Finding(f"{type(error).__name__}: {error}", error.exit_code)
        with suppress(UsageError):
            self.save(replace(report, problem=problem, is_complete=True))

    def save(self, report: Report) -> None:
        """Write the JSON file, whole or not at all. Raises UsageError."""
        file = self.json_file
        if file is None:
            return
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            part.write_text(report.as_json() + "\n")
            part.replace(file)
        except OSError as error:
            raise UsageError(f"--json {file} cannot be written: {error}") from error
        finally:
            with suppress(OSError):
                part.unlink()


def _host_row(host: Host, visits: Sequence[Visit]) -> list[str]:
    at_door = [visit for visit in visits if visit.door == host.first_rank]
    trips = [visit.round_trip_s for visit in at_door if visit.round_trip_s is not None]
    clocks = [visit.clock_ahead_s for visit in at_door if visit.visitor == 0]
    gpu, shared = host.gpu_bytes, host.ranks[0].shm_free_bytes
    clock_ms = None if not clocks or clocks[0] is None else round(clocks[0] * 1e3, 2) + 0.0
    return [
        host.name,
        _ranks([rank.rank for rank in host.ranks]),
        host.devices,
        str(host.n_cores),
        str(host.n_threads),
        number(host.ram_free_bytes / 1024**3),
        _UNKNOWN if shared is None else number(shared / 1024**2),
        " of ".join(number(size / 1024**3) for size in gpu) if gpu else _UNKNOWN,
        f"{len(trips)} of {len(at_door)}" if at_door else _UNKNOWN,
        f"{max(trips) * 1e3:.3f}" if trips else _UNKNOWN,
        _UNKNOWN if clock_ms is None else f"{clock_ms:.2f}",
    ]


def _link_row(link: LinkFigures, names: Mapping[int, str]) -> list[str]:
    hosts = dict.fromkeys(names[rank] for rank in link.ranks)
    return [
        link.axis,
        _ranks(link.ranks),
        ", ".join(hosts),
        "send" if link.axis == "pp" else "all-reduce",
        number(link.median_s * 1e6),
        number(link.p95_s * 1e6),
        str(link.n_tries),
        number(link.bytes_per_s / 1e9),
    ]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def number(value: float) -> str:
    """Three digits or all before the point: 0.123, 12.3, 12,345."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ranks(ranks: Sequence[int]) -> str:
    """'0-3' for neighbours, '0, 4' for others."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


def _versions(rank: RankFacts) -> str:
    return ", ".join(f"{name} {version}" for name, version in rank.versions.items())


def _who(ranks: Sequence[RankFacts], *, n_ranks: int) -> str:
    if len(ranks) == n_ranks:
        return "every rank"
    hosts = ", ".join(dict.fromkeys(rank.host for rank in ranks))
    return f"rank(s) {_ranks([rank.rank for rank in ranks])} ({hosts})"
