"""`llama bench`: how fast this machine is, how fast we are on it, and others beside us."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

from llama.cli.terminal import say
from llama.cli.typed import typed
from llama.errors import HardwareError, UsageError

if TYPE_CHECKING:
    from llama.bench.cases import Case
    from llama.bench.result import Result

_QUICK_EFFORT = 0.3


@dataclass(frozen=True)
class Bench:
    """Measure `cases`, or read `stored`; then print the report, and write what was asked for."""

    cases: tuple[Case, ...]
    device: str
    n_rounds: int
    effort: float
    keep: Path | None
    stored: Path | None
    json: Path | None
    report: Path | None
    plots: Path | None

    def run(self) -> None:
        from llama.bench.bars import all_bars
        from llama.bench.report import markdown, put_between_markers

        if self.report is not None:
            put_between_markers(self.report, None)  # an error now, and not in an hour
        result = self._measure() if self.stored is None else self._read(self.stored)
        is_gpu = result.machine.gpu is not None
        bars = all_bars(result.machine.n_cores, device="cuda" if is_gpu else "cpu")
        print(markdown(result, bars), end="", flush=True)
        if self.json is not None:
            result.save(self.json, bars=bars)
        images = [] if self.plots is None else _draw(result, self.plots)
        if self.report is not None:
            beside = [_relative(image, self.report.parent) for image in images]
            put_between_markers(self.report, markdown(result, bars, images=beside))

    def _measure(self) -> Result:
        from llama.bench.run import Bench as Run
        from llama.bench.store import ModelStore

        signal.signal(signal.SIGTERM, _exit)
        with ModelStore.at(self.keep) as store:
            bench = Run(store, say, device=self.device, n_rounds=self.n_rounds, effort=self.effort)
            names = " ".join(case.name for case in self.cases)
            return bench.run(
                self.cases,
                options={"cases": names, "rounds": self.n_rounds, "effort": self.effort},
            )

    def _read(self, path: Path) -> Result:
        from llama.bench.result import Result

        return Result.load(path)


def _draw(result: Result, folder: Path) -> list[Path]:
    if find_spec("matplotlib") is None:
        say("no plots: pip install matplotlib")
        return []
    from llama.bench.plots import draw

    return draw(result, folder)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    """In order: what was started is ended, and gigabytes of models are given back."""
    sys.exit(128 + signum)


def _relative(path: Path, folder: Path) -> Path:
    return Path(os.path.relpath(path, folder))


@typed
def bench(
    *,
    quick: bool = False,
    only: str | None = None,
    shape: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    rounds: int | None = None,
    keep: str | None = None,
    result: str | None = None,
    json: str | None = None,
    report: str | None = None,
    plots: str | None = None,
) -> Bench:
    """Measure this machine, this package on it, and llama.cpp and transformers beside it.

    Random weights are made on the spot; every turn runs in fresh processes. The report goes to
    stdout. Peers are measured where they are installed: pip install "llama[bench]".

    Args:
        quick: under two minutes: one round of the cheap cases, on the 110m shape
        only: one case: float32, half, quantized, small, overhead, pipeline, scaling, collectives
            or large; with a GPU gpu-1b, gpu-7b or gpu-8b
        shape: tiny, 110m, 1b, 7b or 8b instead of what the cases have
        dtype: of us only what stores this: float32, bfloat16 or float16
        quantize: of us only what is quantised like this
        device: cpu or cuda
        rounds: turns that everybody has; by default 3, quick 1
        keep: folder where the models stay for the next run; by default a temporary one that goes
        result: do not measure, but report on a file that --json has written
        json: file to write all samples to
        report: Markdown file with two marker lines to put the report between
        plots: folder for PNG plots
    """
    from llama.bench.cases import cases
    from llama.bench.machine import core_count

    if rounds is not None and rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    if device == "cuda" and result is None:
        _check_gpu()
    found = cases(
        device=device,
        n_cores=core_count(),
        only=only,
        shape=shape,
        dtype=dtype,
        quantize=quantize,
        is_quick=quick,
    )
    return Bench(
        cases=tuple(found),
        device=device,
        n_rounds=rounds or (1 if quick else 3),
        effort=_QUICK_EFFORT if quick else 1.0,
        keep=_path(keep),
        stored=_path(result),
        json=_path(json),
        report=_path(report),
        plots=_path(plots),
    )


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise HardwareError("--device cuda needs a GPU that torch can use, and torch sees none")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
