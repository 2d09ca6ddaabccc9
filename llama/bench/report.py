"""A result as Markdown: machine, limits, bars, then every case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from llama.bench.bars import Bar, Verdict
from llama.bench.figure import Figure
from llama.bench.limits import Limits
from llama.bench.result import Result
from llama.bench.run import BUSY
from llama.errors import OutputError, UsageError

BEGIN = "<!-- llama bench: begin -->"
END = "<!-- llama bench: end -->"


def markdown(result: Result, bars: Sequence[Bar], *, images: Sequence[Path] = ()) -> str:
    """Headings start at the third level. `images` are linked as they are named."""
    parts = [_about(result), *_limits(result), *_verdicts(result.verdicts(bars))]
    parts += [f"![{image.stem.replace('-', ' ')}]({image.as_posix()})" for image in images]
    for name in dict.fromkeys(figure.case for figure in result.figures):
        parts += _case(name, [figure for figure in result.figures if figure.case == name])
    parts += _collectives(result.collectives)
    if result.agreements:
        parts += ["### Same tokens", _listed(result.agreements)]
    if result.failures:
        parts += ["### Not measured", _listed(result.failures)]
    return "\n\n".join(parts) + "\n"


def put_between_markers(path: Path, text: str | None) -> None:
    """Replace what stands between the markers in the file `path` by `text`; None leaves it.

    Raises UsageError when it has no markers, OutputError when it cannot be written.
    """
    try:
        whole = path.read_text()
        before, begin, rest = whole.partition(BEGIN)
        old, end, after = rest.partition(END)
        if not (begin and end):
            raise UsageError(f"{path} needs the lines {BEGIN} and {END}; the report goes between")
        between = old if text is None else f"\n{text}"
        path.write_text(f"{before}{BEGIN}{between}{END}{after}")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _about(result: Result) -> str:
    machine = result.machine
    chip = machine.gpu or machine.cpu
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    options = ", ".join(f"{name} {value}" for name, value in result.options.items())
    return (
        f"{result.date}; {machine.n_cores} cores of {chip} ({' '.join(machine.instructions)}), "
        f"{machine.memory_bytes / 1e9:.0f} GB, {machine.system}. {versions}.\n"
        f"{options}; {result.elapsed_s / 60:.0f} minutes. Median of all rounds, with the least and "
        f"the most; every sample from fresh processes, contestants in turns."
    )


def _limits(result: Result) -> Iterator[str]:
    if not result.limits:
        return
    found = [Limits.of(row) for row in result.limits]
    yield "### Limits of the machine"
    rows = []
    for n_threads in found[0].read_gb_s:
        cells = [
            _spread([limits.read_gb_s[n_threads] for limits in found]),
            _spread([limits.copy_gb_s[n_threads] for limits in found]),
            _spread([limits.matmul_gflop_s[n_threads] for limits in found], digits=0),
        ]
        rows.append([str(n_threads), *cells])
    yield table(["threads", "read GB/s", "copy GB/s", "matmul GFLOP/s"], rows)
    yield (
        "Measured before every round of every case; each figure below is held against its own "
        "round's. Decoding is held against reading all weights and the cache once a step, a prompt "
        "against torch's products of large square matrices."
    )
    busy = [row["busy before"] for row in result.limits if row.get("busy before", 0.0) > BUSY]
    if busy:
        yield (
            f"**Spoilt**: before {len(busy)} of {len(result.limits)} rounds other programs used up "
            f"to {max(busy):.0%} of the cores. Measure again on an idle machine."
        )


def _verdicts(verdicts: Sequence[Verdict]) -> Iterator[str]:
    judged = [verdict for verdict in verdicts if verdict.ratio is not None]
    if not judged:
        return
    yield "### Bars"
    rows = []
    for verdict in judged:
        bar = verdict.bar
        least_or_most = f"{'≤' if bar.is_most else '≥'} {bar.bar:g}"
        met = "yes" if verdict.is_met else "no"
        rows.append([bar.text, f"{verdict.ratio:.2f}", least_or_most, met])
    yield table(["what", "ratio", "bar", "met"], rows)
    if len(judged) < len(verdicts):
        yield f"{len(verdicts) - len(judged)} bars need cases that this run left out."


def _case(name: str, figures: Sequence[Figure]) -> Iterator[str]:
    if not any(figure.unit in ("tokens/s", "share") for figure in figures):
        return
    yield f"### {name} ({figures[0].shape})"
    rates = [figure for figure in figures if figure.unit == "tokens/s"]
    if rates:
        columns = ["work", "who", "tokens/s", "least", "most", "of the limit", "first token s"]
        yield table(columns, [_rate_row(figure, figures) for figure in _by_work(rates)])
    shares = [figure for figure in figures if figure.unit == "share"]
    if shares:
        columns = ["what", "who", "share", "least", "most"]
        yield table(columns, [[f.metric, f.contestant.name, *_cells(f, 3)] for f in shares])
    rows = []
    for load in (figure for figure in figures if figure.metric == "load"):
        own = {f.metric: f.median for f in figures if f.contestant == load.contestant}
        started, peak = own["started"], own["peak memory"]
        cells = f"{load.median:.2f}", f"{started:.2f}", f"{peak / 1e9:.2f}"
        rows.append([load.contestant.name, *cells])
    if rows:
        yield table(["who", "load s", "from start to warm s", "peak memory GB"], rows)


def _by_work(rates: Sequence[Figure]) -> list[Figure]:
    order = {name: place for place, name in enumerate(dict.fromkeys(f.metric for f in rates))}
    return sorted(rates, key=lambda figure: order[figure.metric])


def _rate_row(figure: Figure, figures: Sequence[Figure]) -> list[str]:
    first = [
        other.median
        for other in figures
        if other.contestant == figure.contestant and other.metric == f"{figure.metric} first token"
    ]
    return [
        figure.metric,
        figure.contestant.name,
        *_cells(figure, 1),
        "" if figure.share is None else f"{figure.share:.0%}",
        "".join(f"{seconds:.3f}" for seconds in first),
    ]


def _cells(figure: Figure, digits: int) -> list[str]:
    numbers = (figure.median, min(figure.samples), max(figure.samples))
    return [f"{number:.{digits}f}" for number in numbers]


def _collectives(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "### Collectives"
    rounds: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["operation"], row["nbytes"], row["contestant"])
        rounds.setdefault(key, []).append(row)
    cells = []
    for (operation, nbytes, contestant), found in sorted(rounds.items()):
        median_us, p90_us, gb_s = (
            median(row[name] for row in found) for name in ("median_us", "p90_us", "gb_s")
        )
        figures = [f"{median_us:.1f}", f"{p90_us:.1f}", f"{gb_s:.2f}"]
        cells.append([operation, f"{nbytes:,}", contestant, *figures])
    yield table(["operation", "bytes", "who", "median µs", "90 % under µs", "GB/s"], cells)


def _spread(values: Sequence[float], *, digits: int = 1) -> str:
    least, most = min(values), max(values)
    return f"{least:.{digits}f} to {most:.{digits}f}" if len(values) > 1 else f"{most:.{digits}f}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {re.sub(r'[<>|]', ' ', line)}" for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
