"""The scoreboard as Markdown: one row a case, percentiles, and the machine it was run on."""

from __future__ import annotations

import os
import platform
import re
import socket
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.helpers.programs import ROOT

if TYPE_CHECKING:
    from tests.faults.case import Kind
    from tests.faults.run import Result

LIMITS_S: dict[Kind, float] = {"killed": 5.0, "stopped": 8.0}
MAX_LINE = 300
_INTRODUCTION = """\
# What happens when something fails

`make faults` writes this page. Each case is a real job under `python -m launch`: real ranks over
gloo, real signals, files and cables. A run passes when everything in "must" was so, and nothing was
left behind: no process, no listening port, no entry of /dev/shm, no network namespace, no temporary
file (all counted before and after). Detection is the time from the fault to the end of the last
survivor. A dash among exit codes is a rank that a signal ended. The programs and checks are in
`tests/faults/`.
"""


def report(results: Sequence[Result]) -> str:
    n_passed = sum(not result.errors for result in results)
    n_runs = sum(result.n_runs for result in results)
    n_left = sum(len(result.leftovers) for result in results)
    parts = [
        _INTRODUCTION,
        f"{n_passed} of {len(results)} cases passed, in {n_runs} runs. Left behind: {n_left}.\n",
        *(f"{line}\n" for line in _percentiles(results)),
        _machine(),
        "## Cases\n\n" + _table(results),
        "## What was printed\n\nThe line that named the cause, of each variant in the last run.\n",
        *(_printed(result) for result in results),
    ]
    return "\n".join(parts)


def p95(times: Sequence[float]) -> float:
    """The smallest of `times` that at least 95 % do not exceed."""
    return sorted(times)[-(-95 * len(times) // 100) - 1]


def within_limits(results: Sequence[Result]) -> bool:
    """Whether p95 of every kind of fault is within its limit."""
    times = {kind: _times(r for r in results if r.case.kind == kind) for kind in LIMITS_S}
    return all(not found or p95(found) <= LIMITS_S[kind] for kind, found in times.items())


def _times(results: Iterable[Result]) -> list[float]:
    outcomes = [outcome for result in results for outcome in result.outcomes]
    return [outcome.detect_s for outcome in outcomes if outcome.detect_s is not None]


def _percentiles(results: Sequence[Result]) -> list[str]:
    lines = []
    for kind, limit_s in LIMITS_S.items():
        times = _times(result for result in results if result.case.kind == kind)
        if times:
            lines.append(
                f"Detection of {kind} ranks: p95 {p95(times):.2f} s, median "
                f"{statistics.median(times):.2f} s of {len(times)}; p95 must be ≤ {limit_s:.0f} s."
            )
    return lines


def _machine() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    n_cores = len(os.sched_getaffinity(0))
    return (
        f"Machine: {model}, {n_cores} cores, Linux {platform.release().partition('-')[0]}, Python "
        f"{platform.python_version()}, torch {torch.__version__}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d}.\n"
    )


def _table(results: Sequence[Result]) -> str:
    rows = [
        "| case | done | must | passed | detected, median / max | exit codes |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        times = _times([result])
        detected = f"{statistics.median(times):.2f} / {max(times):.2f} s" if times else "·"
        codes = "<br>".join(dict.fromkeys(_unmarked(o.codes) for o in result.outcomes))
        case = result.case
        cells = [case.id, case.done, case.must, f"{result.n_passed}/{result.n_runs}"]
        rows.append(f"| {' | '.join([*cells, detected, codes])} |")
    return "\n".join(rows) + "\n"


def _printed(result: Result) -> str:
    n_variants = max(1, len(result.outcomes) // max(1, result.n_passed))
    lines = [_plain(outcome.line) for outcome in result.outcomes[-n_variants:]]
    failures = [_plain(error.splitlines()[0]) for error in result.errors]
    body = "\n".join([*lines, *(f"FAILED: {failure}" for failure in failures)])
    return f"**{result.case.id}**\n\n```\n{body}\n```\n"


def _plain(line: str) -> str:
    """Without what is only true of this machine: its name, and where its folders are."""
    line = line.replace(sys.executable, "python").replace(f"{ROOT}/", "")
    line = line.replace(socket.gethostname(), "host")
    line = re.sub(r"/\S*?/faults-\w+/", "", line)
    line = re.sub(r"\b(host-[ab])-[0-9a-f]{6}\b", r"\1", line)  # a namespace's
    return line if len(line) <= MAX_LINE else line[:MAX_LINE] + " ..."


def _unmarked(text: str) -> str:
    return text.replace("|", "\\|")
