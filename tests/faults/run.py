"""`make faults`: every case of the fault scoreboard, several times, and a report of how it went.

    python -m tests.faults.run [--repeat 3] [--only P02,P04] [--out docs/reliability.md]

The report is written when all cases were run. Exit status 1 when any run of any case failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.case import Case, CaseFailed, Outcome
from tests.faults.cases import (
    again,
    answers,
    deaths,
    interrupts,
    loading,
    meetings,
    networks,
    pauses,
)
from tests.faults.report import report, within_limits
from tests.faults.scene import Scene
from tests.helpers.programs import ROOT

MODULES = (loading, pauses, deaths, interrupts, meetings, networks, answers, again)
REPORT = ROOT / "docs" / "reliability.md"


@dataclass
class Result:
    """What the runs of one case came to; `errors` has one text a failed run."""

    case: Case
    n_runs: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def n_passed(self) -> int:
        return self.n_runs - len(self.errors)


def all_cases() -> list[Case]:
    found = [case for module in MODULES for case in module.CASES]
    return sorted(found, key=lambda case: case.id)


def run_once(case: Case, *, slack: float = 1.0) -> tuple[list[Outcome], list[str]]:
    """Outcomes and leftovers of one run. Raises CaseFailed."""
    with TemporaryDirectory(prefix="faults-") as folder:
        scene = Scene(Path(folder), slack=slack)
        try:
            outcomes = case.run(scene)
            return outcomes, scene.left_behind()
        finally:
            scene.close()


def run_case(case: Case, *, repeat: int, slack: float = 1.0) -> Result:
    """Run it `repeat` times; `slack` multiplies its time limits."""
    result = Result(case)
    for number in range(repeat):
        result.n_runs += 1
        began = time.monotonic()
        try:
            outcomes, leftovers = run_once(case, slack=slack)
        except CaseFailed as error:
            result.errors.append(str(error))
            verdict = f"FAILED: {error}"
        else:
            result.outcomes += outcomes
            result.leftovers += leftovers
            if leftovers:
                result.errors.append(f"left behind: {', '.join(leftovers)}")
            verdict = result.errors[-1] if leftovers else f"ok  {detection(outcomes)}"
        spent_s = time.monotonic() - began
        progress(f"{case.id}  run {number + 1}/{repeat}  {spent_s:5.1f} s  {verdict}")
    return result


def detection(outcomes: Sequence[Outcome]) -> str:
    times = [f"{o.detect_s:.2f}" for o in outcomes if o.detect_s is not None]
    return f"detected after {', '.join(times)} s" if times else ""


def progress(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The fault scoreboard.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="cases by their numbers: P02,P04")
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    wanted = {name for name in options.only.upper().split(",") if name}
    cases = [case for case in all_cases() if not wanted or case.id in wanted]
    if unknown := wanted - {case.id for case in cases}:
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    # a shell's background jobs ignore it, and so would every launcher that is started here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    results = [run_case(case, repeat=options.repeat) for case in cases]
    if not wanted:
        options.out.write_text(report(results), encoding="utf-8")
    failed = [result.case.id for result in results if result.errors]
    spent_s = time.monotonic() - began
    progress(f"{len(results) - len(failed)} of {len(results)} cases passed in {spent_s:.0f} s")
    if failed:
        progress(f"failed: {', '.join(failed)}")
    return 1 if failed or not within_limits(results) else 0


if __name__ == "__main__":
    sys.exit(main())
