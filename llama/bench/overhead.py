"""What the engine adds to a model's own forward pass: scheduling, batches, sampling, messages.

Both are timed in the same steps of the same run: a step from one token to the next, and inside it
the stage and its head.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ParamSpec, TypeVar

from torch import Tensor

from llama.bench.ours import go_through, loaded
from llama.bench.task import Measured, Task
from llama.ops.batch import Batch

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class Stopwatch:
    """Adds up the seconds of the functions that were given to it."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def over(self, function: Callable[_P, _Result]) -> Callable[_P, _Result]:
        def timed(*args: _P.args, **options: _P.kwargs) -> _Result:
            began = time.perf_counter()
            result = function(*args, **options)
            self.spent_s += time.perf_counter() - began
            return result

        return timed


def run(task: Task) -> Measured:
    """Figures "overhead of WORK", a share of the forward pass, on the rank that leads."""
    figures = {}
    with loaded(task) as ready:
        engine, stage = ready.engine, ready.engine.stage
        watch = Stopwatch()
        steps: list[tuple[float, float]] = []
        logits = watch.over(stage.logits)

        def last_of_step(hidden: Tensor, batch: Batch) -> Tensor | None:
            result = logits(hidden, batch)
            steps.append((time.perf_counter(), watch.spent_s))
            return result

        stage.forward = watch.over(stage.forward)  # type: ignore[method-assign]
        stage.logits = last_of_step  # type: ignore[method-assign]
        for work in task.works:
            go_through(engine, work.warm_up)
            steps.clear()
            go_through(engine, work)
            if engine.context.is_leader:
                figures[f"overhead of {work.name}"] = overhead(steps)
    return Measured(figures=figures)


def overhead(steps: Sequence[tuple[float, float]]) -> float:
    """From the time and the forward seconds so far at the end of every step's forward pass."""
    pairs = list(pairwise(steps))
    step_s = statistics.median(after[0] - before[0] for before, after in pairs)
    forward_s = statistics.median(after[1] - before[1] for before, after in pairs)
    return step_s / forward_s - 1
