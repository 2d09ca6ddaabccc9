"""What the rounds of one case found, gathered into figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from llama.bench.cases import Case
from llama.bench.contestant import Contestant
from llama.bench.figure import Figure
from llama.bench.limits import Limits
from llama.bench.process import Outcome
from llama.bench.roofline import limit
from llama.bench.work import Work

_UNITS: Mapping[str, str] = {"load_s": "s", "started_s": "s"}
_BUSY = "busy share of rank "
_OVERHEAD = "overhead of "


class CaseSamples:
    """Samples by contestant and metric, one a round."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._samples: dict[tuple[Contestant, str, str], list[float]] = {}
        self._limits: dict[tuple[Contestant, str, str], list[float]] = {}
        self._token_ids: dict[Contestant, Sequence[int]] = {}
        self.rows: list[dict[str, Any]] = []
        """Of collectives."""

    def add(self, contestant: Contestant, outcome: Outcome, limits: Limits | None) -> None:
        """One turn. `limits` are those of its round."""
        for work in self._case.works:
            if work.name not in outcome.first.traces:
                continue
            trace = outcome.first.traces[work.name]
            key = contestant, work.name, "tokens/s"
            self._note(key, trace.tokens_per_s(work))
            self._note((contestant, f"{work.name} first token", "s"), trace.first_token_s)
            most = None if limits is None else self._limit(contestant, work, outcome, limits)
            if most is not None:
                self._limits.setdefault(key, []).append(most)
            if work is self._case.works[0]:
                self._token_ids[contestant] = trace.token_ids
        for metric, unit, sample in _single_figures(contestant, outcome, self._case.works):
            self._note((contestant, metric, unit), sample)
        where = {"contestant": contestant.name, "transport": contestant.transport}
        self.rows += [{**where, **row} for row in outcome.first.rows]

    def figures(self) -> list[Figure]:
        return [
            Figure(
                case=self._case.name,
                shape=self._case.shape.name,
                contestant=contestant,
                metric=metric,
                unit=unit,
                samples=samples,
                limits=self._limits.get((contestant, metric, unit), ()),
            )
            for (contestant, metric, unit), samples in self._samples.items()
        ]

    def agreements(self) -> list[str]:
        """How far everybody's greedy tokens are ours, where all compute in float32."""
        plain = {
            one: ids
            for one, ids in self._token_ids.items()
            if one.stored == "float32" and len(ids) > 1
        }
        lines = []
        first = next(iter(plain), None)
        for other in plain:
            if first is None or other == first:
                continue
            name = f"{self._case.name} ({self._case.shape.name})"
            pairs = zip(plain[first], plain[other], strict=False)
            n_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            lines.append(
                f"{name}: {other.name} has the first {n_equal} of {len(plain[first])} greedy "
                f"tokens of {first.name}"
            )
        return lines

    def _note(self, key: tuple[Contestant, str, str], sample: float) -> None:
        self._samples.setdefault(key, []).append(sample)

    def _limit(
        self, contestant: Contestant, work: Work, outcome: Outcome, limits: Limits
    ) -> float | None:
        read = outcome.total("read_bytes") if "read_bytes" in outcome.first.figures else None
        return limit(contestant, work, self._case.shape, limits, read_bytes=read)


def _single_figures(
    contestant: Contestant, outcome: Outcome, works: Sequence[Work]
) -> Iterator[tuple[str, str, float]]:
    """Metric, unit and value of all that is no rate: the slowest rank's, or the sum over them."""
    figures = outcome.first.figures
    for name, unit in _UNITS.items():
        if name in figures:
            yield name.removesuffix("_s"), unit, outcome.most(name)
    yield "peak memory", "bytes", outcome.total("peak_bytes")
    for work in works:
        shares = [
            share
            for name, share in figures.items()
            if name.startswith(_BUSY) and name.endswith(f" in {work.name}")
        ]
        if shares and contestant.pp > 1:  # a lone stage only ever waits for its tp peers
            yield f"{work.name} busy share", "share", min(shares)
        if f"{_OVERHEAD}{work.name}" in figures:
            yield f"{work.name} overhead", "share", figures[f"{_OVERHEAD}{work.name}"]
