"""A run: every case's contestants in turns, round after round, each turn in fresh processes.

One contestant's failure is a line of the result; the others go on.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.bench.cases import Case
from llama.bench.contestant import Contestant, one_process
from llama.bench.figure import Figure
from llama.bench.limits import Limits
from llama.bench.machine import MachineFacts, core_count, others_busy_share, versions
from llama.bench.peers import missing
from llama.bench.process import Outcome, ProcessFailure, run
from llama.bench.result import Result
from llama.bench.samples import CaseSamples
from llama.bench.store import ModelStore
from llama.bench.task import Task
from llama.errors import OutputError

BUSY = 0.1
"""Share of the cores from which on the work of others spoils figures."""
_MOST_READ_BYTES = 2**32 + 2**28
"""The weights of 1.1 B in float32, and what fits beside other programs."""
Say = Callable[[str], None]


@dataclass
class Bench:
    """Measures `cases` on `device`; models are made in `store`, what happens is told to `say`.

    `effort` below 1 shortens what measures limits and collectives.
    """

    store: ModelStore
    say: Say
    device: str = "cpu"
    n_rounds: int = 3
    effort: float = 1.0
    figures: list[Figure] = field(default_factory=list)
    limits: list[dict[str, Any]] = field(default_factory=list)
    collectives: list[dict[str, Any]] = field(default_factory=list)
    agreements: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, cases: Sequence[Case], *, options: Mapping[str, Any]) -> Result:
        began = time.monotonic()
        for number, case in enumerate(cases):
            self._measure(case)
            later = {
                (left.shape.name, one) for left in cases[number + 1 :] for one in left.contestants
            }
            self.store.forget_all_but(later)
        return Result(
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
            elapsed_s=time.monotonic() - began,
            machine=MachineFacts.here(device=self.device),
            versions=versions(),
            options=options,
            figures=self.figures,
            limits=self.limits,
            collectives=self.collectives,
            agreements=self.agreements,
            failures=self.failures,
        )

    def _measure(self, case: Case) -> None:
        n_rounds = min(self.n_rounds, case.most_rounds or self.n_rounds)
        samples = CaseSamples(case)
        left = [one for one in case.contestants if self._is_there(one)]
        for number in range(n_rounds if left else 0):
            self.say(f"{case.name} ({case.shape.name}), round {number + 1} of {n_rounds}")
            limits = self._limits(case) if case.program == "works" else None
            # the other way round every second time: whoever comes first finds another machine
            for contestant in left[:: -1 if number % 2 else 1]:
                outcome = self._turn(case, contestant)
                if outcome is None:
                    left = [one for one in left if one != contestant]
                else:
                    samples.add(contestant, outcome, limits)
        self.figures += samples.figures()
        self.collectives += samples.rows
        self.agreements += samples.agreements()

    def _is_there(self, contestant: Contestant) -> bool:
        packages = missing(contestant.engine)
        if packages:
            self._fail(f"{contestant.engine} not measured: pip install {' '.join(packages)}")
        return not packages

    def _limits(self, case: Case) -> Limits | None:
        """Of the machine just now; None when they could not be measured, which is noted."""
        busy = others_busy_share()
        if busy > BUSY:
            self.say(f"other programs use {busy:.0%} of the cores: what follows is no comparison")
        contestant = one_process("float32", n_cores=core_count())
        task = Task(
            "limits",
            contestant,
            Path(),
            device=self.device,
            read_bytes=min(4 * case.shape.product_parameters, _MOST_READ_BYTES),
            effort=self.effort,
        )
        try:
            figures = run(task).first.figures
        except ProcessFailure as error:
            self._fail(f"limits of the machine not measured: {error}")
            return None
        self.limits.append({"case": case.name, "busy before": busy, **figures})
        return Limits.of(figures)

    def _fail(self, line: str) -> None:
        if line not in self.failures:
            self.failures.append(line)
            self.say(line)

    def _turn(self, case: Case, contestant: Contestant) -> Outcome | None:
        """None when it failed, which is noted."""
        try:
            model = self.store.model_for(case.shape, contestant)
            outcome = run(
                Task(
                    case.program,
                    contestant,
                    model,
                    device=self.device,
                    works=case.works,
                    effort=self.effort,
                )
            )
        except (ProcessFailure, OutputError) as error:
            self._fail(f"{case.name} ({case.shape.name}) not measured: {error}")
            return None
        rates = {
            work.name: f"{outcome.first.traces[work.name].tokens_per_s(work):.1f} tokens/s"
            for work in case.works
            if work.name in outcome.first.traces
        }
        told = ", ".join(f"{name} {rate}" for name, rate in rates.items())
        self.say(f"  {contestant.name}: {told or 'done'}")
        return outcome
