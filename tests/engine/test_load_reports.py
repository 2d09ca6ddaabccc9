"""Every rank's load report reaches every rank, as it was."""

from __future__ import annotations

from llama.checkpoint.loading.load_report import LoadReport
from llama.engine.load_reports import gather_reports
from llama.parallel.context import ParallelContext
from tests.helpers.ranks import run_layout


def report_of(rank: int) -> LoadReport:
    ignored = {"rope.freqs": "computed"} if rank else {}
    return LoadReport(rank, 3, 10, 9, rank, 0.5, 11, {"float16": 3}, ignored)


def gather(context: ParallelContext) -> list[LoadReport]:
    return gather_reports(report_of(context.rank), context)


def test_reports_come_in_rank_order() -> None:
    assert run_layout(gather, tp=2) == [[report_of(0), report_of(1)]] * 2
