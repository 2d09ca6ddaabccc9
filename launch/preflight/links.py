"""How fast the links of a job are, and whether what they carry arrives unchanged.

Measured by the calls that inference makes, on tensors where inference has them. Knows no hosts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from launch.preflight.probes import EchoProbe, Message, Probe, SumProbe
from llama.parallel.agreement import share_texts
from llama.parallel.context import ParallelContext

SMALL = Message(8 * 1024, n_warm_ups=5, fewest=20, most=200)
LARGE = Message(16 * 1024**2, n_warm_ups=1, fewest=2, most=5)
_AXES = ("tp", "pp", "world")


@dataclass(frozen=True)
class LinkFigures:
    """One group of `axis`, or one pair of stages next to each other (axis "pp").

    `median_s` and `p95_s` are those of `n_tries` small messages; `bytes_per_s` is a large message
    through its median time. Of a group the time is an all-reduce's, of a pair half a round trip's.
    """

    axis: str
    ranks: Sequence[int]
    median_s: float
    p95_s: float
    bytes_per_s: float
    n_tries: int


@dataclass(frozen=True)
class WrongResults:
    """Rank `seen_by` got `n_wrong` results, over `ranks`, that were not as they had to be."""

    axis: str
    ranks: Sequence[int]
    seen_by: int
    n_wrong: int


@dataclass(frozen=True)
class Measured:
    """What was measured; the figures are those of each group's first rank."""

    figures: tuple[LinkFigures, ...] = ()
    wrong: tuple[WrongResults, ...] = ()


def measure_links(context: ParallelContext, *, seconds: float) -> Measured:
    """Every tp group, pp link and the world, in about `seconds`; alike on all ranks. Collective.

    Groups of one axis are measured at the same time, the links of a pipeline one after the other.
    Raises PeerLostError and RankTimeoutError.
    """
    figures, wrong = [], []
    half_s = seconds / (2 + context.pp.size - 1) / 2
    for axis, ranks, probe in _probes(context):
        small, large = (probe.run(message, seconds=half_s) for message in (SMALL, LARGE))
        if context.rank == ranks[0]:
            speed = LARGE.n_bytes / large.median_s
            p95_s = percentile(small.times_s, 95)
            figures.append(
                LinkFigures(axis, ranks, small.median_s, p95_s, speed, len(small.times_s))
            )
        if n_wrong := small.n_wrong + large.n_wrong:
            wrong.append(WrongResults(axis, ranks, context.rank, n_wrong))
    mine = {"figures": list(map(asdict, figures)), "wrong": list(map(asdict, wrong))}
    everyone = [json.loads(text) for text in share_texts(context.world, json.dumps(mine))]
    all_figures = [LinkFigures(**fields) for rank in everyone for fields in rank["figures"]]
    all_wrong = [WrongResults(**fields) for rank in everyone for fields in rank["wrong"]]
    return Measured(
        tuple(sorted(all_figures, key=lambda link: (_AXES.index(link.axis), link.ranks))),
        tuple(all_wrong),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` % of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _probes(context: ParallelContext) -> Iterator[tuple[str, list[int], Probe]]:
    """What this rank takes part in, in an order that nobody waits for in a circle."""
    layout, rank = context.layout, context.rank
    if context.tp.size > 1:
        yield "tp", list(layout.tp_group(rank)), SumProbe(context.tp, context.device)
    stages = list(layout.pp_group(rank))
    for left in range(context.pp.size - 1):
        if context.pp.rank in (left, left + 1):
            yield "pp", stages[left : left + 2], EchoProbe(context.pp, context.device, left=left)
    if context.world.size > 1:
        world = SumProbe(context.world, torch.device("cpu"))
        yield "world", list(range(layout.world_size)), world
