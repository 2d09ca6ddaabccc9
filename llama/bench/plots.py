"""A result as PNG files: speed against peers, share of the limit, scaling over cores.

Needs matplotlib, of the extra "bench".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from llama.bench.contestant import Contestant
from llama.bench.figure import Figure
from llama.bench.result import Result
from llama.errors import OutputError

_DPI = 110
_PEER_CASES = ("float32", "half", "quantized", "small", "gpu-1b", "gpu-7b", "gpu-8b")


def draw(result: Result, folder: Path) -> list[Path]:
    """The files made: only those that the result has figures for. Raises OutputError."""
    rates = [f for f in result.figures if f.unit == "tokens/s" and f.case in _PEER_CASES]
    limited = [figure for figure in rates if figure.share is not None]
    scaling = [f for f in result.figures if f.unit == "tokens/s" and f.case == "scaling"]
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rates:
            made.append(_save(_bars(rates, is_share=False), folder / "bench-tokens-per-second.png"))
        if limited:
            made.append(_save(_bars(limited, is_share=True), folder / "bench-share-of-limit.png"))
        if scaling:
            made.append(_save(_scaling(scaling), folder / "bench-scaling.png"))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
    return made


def _save(canvas: Canvas, path: Path) -> Path:
    canvas.savefig(path, dpi=_DPI, bbox_inches="tight")
    return path


def _bars(figures: Sequence[Figure], *, is_share: bool) -> Canvas:
    """A row of panels a case, a panel a work, a bar a contestant with its spread."""
    cases = list(dict.fromkeys(figure.case for figure in figures))
    works = list(dict.fromkeys(figure.metric for figure in figures))
    canvas = Canvas(figsize=(4.6 * len(works), 0.6 + 2.4 * len(cases)))
    panels = canvas.subplots(len(cases), len(works), squeeze=False)
    for row, case in enumerate(cases):
        for column, work in enumerate(works):
            shown = [f for f in figures if (f.case, f.metric) == (case, work)]
            _panel(panels[row][column], shown, is_share=is_share, is_labelled=column == 0)
            panels[row][column].set_title(f"{case}: {work}", fontsize=9)
    canvas.suptitle("share of the machine's limit" if is_share else "tokens per second")
    canvas.tight_layout()
    return canvas


def _panel(axes: Axes, figures: Sequence[Figure], *, is_share: bool, is_labelled: bool) -> None:
    if not figures:
        axes.set_axis_off()
        return
    places = range(len(figures))[::-1]
    values = [(figure.share or 0.0) if is_share else figure.median for figure in figures]
    colours = ["tab:blue" if f.contestant.engine == "llama" else "tab:grey" for f in figures]
    axes.barh(list(places), values, color=colours)
    if is_share:
        axes.axvline(1.0, color="black", linewidth=0.8)
    else:
        for place, figure in zip(places, figures, strict=True):
            spread = [min(figure.samples), max(figure.samples)]
            axes.plot(spread, [place, place], color="black", linewidth=1)
    axes.set_yticks(list(places), [f.contestant.name for f in figures], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)


def _scaling(figures: Sequence[Figure]) -> Canvas:
    """Over processes times threads: threads of one process, tensor and pipeline ranks."""
    works = list(dict.fromkeys(figure.metric for figure in figures))
    canvas = Canvas(figsize=(5.0 * len(works), 3.4))
    panels = canvas.subplots(1, len(works), squeeze=False)[0]
    for axes, work in zip(panels, works, strict=True):
        shown = [figure for figure in figures if figure.metric == work]
        for kind in ("threads", "tp", "pp"):
            points = sorted((_cores(f.contestant), f.median) for f in shown if _is(kind, f))
            axes.plot(*zip(*points, strict=True), marker="o", label=kind)
        limits = {_cores(f.contestant): max(f.limits) for f in shown if f.share is not None}
        if limits:
            points = sorted(limits.items())
            axes.plot(*zip(*points, strict=True), "k--", linewidth=0.8, label="limit")
        axes.set_title(work, fontsize=9)
        axes.set_xlabel("cores")
        axes.set_ylabel("tokens per second")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    canvas.tight_layout()
    return canvas


def _is(kind: str, figure: Figure) -> bool:
    """One thread of one process is where every line begins."""
    sizes = {
        "threads": figure.contestant.n_threads,
        "tp": figure.contestant.tp,
        "pp": figure.contestant.pp,
    }
    return sizes[kind] > 1 or _cores(figure.contestant) == 1


def _cores(contestant: Contestant) -> int:
    return contestant.n_ranks * contestant.n_threads
