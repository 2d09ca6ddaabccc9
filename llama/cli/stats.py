"""What `--stats` says: for each rank what it loaded, and what it did since."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama.llm import LLM


def stats_lines(llm: LLM, *, as_json: bool) -> list[str]:
    """Lines in rank order, the same on every rank. Collective over the world.

    As JSON one object a rank: the fields of `llama.engine.stats.RankStats`, and under "load" those
    of `llama.checkpoint.loading.load_report.LoadReport`.
    """
    from llama.engine.load_reports import gather_reports

    loaded = gather_reports(llm.load_report, llm.context)
    ranks = llm.engine.stats()
    if not as_json:
        return [*map(str, loaded), *map(str, ranks)]
    return [
        json.dumps({**asdict(rank), "load": json.loads(report.to_json())})
        for rank, report in zip(ranks, loaded, strict=True)
    ]
