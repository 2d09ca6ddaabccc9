"""What every rank loaded, brought together."""

from __future__ import annotations

from llama.checkpoint.loading.load_report import LoadReport
from llama.parallel.agreement import share_texts
from llama.parallel.context import ParallelContext


def gather_reports(report: LoadReport, context: ParallelContext) -> list[LoadReport]:
    """Every rank's report in rank order. Collective over the world."""
    return [LoadReport.from_json(text) for text in share_texts(context.world, report.to_json())]
