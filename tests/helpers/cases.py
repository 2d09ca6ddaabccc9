"""Many small cases on the same ranks: starting ranks costs more than most layer tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama.parallel.context import ParallelContext
from tests.helpers.ranks import run_layout


def run_cases(
    function: Callable[..., Any], cases: Sequence[tuple[Any, ...]], *, tp: int = 1, pp: int = 1
) -> None:
    """`function(context, *case)` for every case, one after the other on the same ranks."""
    run_layout(_each_case, function, cases, tp=tp, pp=pp)


def _each_case(
    context: ParallelContext, function: Callable[..., Any], cases: Sequence[tuple[Any, ...]]
) -> None:
    for case in cases:
        try:
            function(context, *case)
        except Exception as error:
            raise AssertionError(f"case {case}: {error}") from error
