"""What `--stats` says: for each rank what its start took, what it loaded, and what it did since."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from llama.cli.phases import Phases, StartClock

if TYPE_CHECKING:
    from llama.llm import LLM


def stats_lines(llm: LLM, clock: StartClock, *, as_json: bool) -> list[str]:
    """Lines in rank order, the same on every rank. Collective over the world.

    As JSON one object a rank: the fields of `llama.engine.stats.RankStats`, under "load" those of
    `llama.checkpoint.loading.load_report.LoadReport`, and under "start" those of `Phases`.
    """
    from llama.engine.load_reports import gather_reports
    from llama.parallel.agreement import share_texts

    own = clock.phases(
        rank=llm.context.rank,
        load_s=llm.load_report.seconds,
        first_token_at=llm.engine.runner.stats.first_token_at,
    )
    texts = share_texts(llm.context.world, json.dumps(asdict(own)))
    starts = [Phases(**json.loads(text)) for text in texts]
    loaded = gather_reports(llm.load_report, llm.context)
    ranks = llm.engine.stats()
    if not as_json:
        return [*map(str, starts), *map(str, loaded), *map(str, ranks)]
    return [
        json.dumps({**asdict(rank), "load": json.loads(report.to_json()), "start": asdict(start)})
        for rank, report, start in zip(ranks, loaded, starts, strict=True)
    ]
