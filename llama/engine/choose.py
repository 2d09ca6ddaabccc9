"""Which layout for so many ranks: every way to cut the model, what stands against each, the choice.

It sees sizes and counts only, so ranks that are asked the same come to the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama.checkpoint.wording import sized
from llama.config import ModelConfig
from llama.engine.footprint import Footprint, Workload, footprint
from llama.engine.machine import Machine
from llama.engine.memory import blocks_that_fit, needed_blocks, wanted_blocks
from llama.errors import UnknownNameError, UsageError
from llama.parallel.layout import ParallelLayout

Size = int | Literal["auto"] | None


@dataclass(frozen=True)
class Fit:
    """How a footprint lies in `memory_bytes` a rank.

    `num_blocks` is the KV cache that the engine would make there, the same on every rank.
    `short_bytes` is what `poorest_rank` lacks to hold even one sequence of max_seq_len.
    """

    memory_bytes: int
    num_blocks: int
    wanted_blocks: int
    short_bytes: int
    poorest_rank: int

    @property
    def is_full(self) -> bool:
        """Whether a full batch has its KV cache."""
        return self.num_blocks >= self.wanted_blocks

    @property
    def runs(self) -> bool:
        """Whether the engine would start, if need be with fewer blocks than a full batch wants."""
        return not self.short_bytes


@dataclass(frozen=True)
class Option:
    """One layout. `refused` says why it cannot be; else footprint and fit are there.

    `faults` say what speaks against it, the gravest first; "" for each that does not apply.
    """

    layout: ParallelLayout
    footprint: Footprint | None = None
    fit: Fit | None = None
    faults: tuple[str, ...] = ()
    refused: str = ""

    @property
    def order(self) -> tuple[object, ...]:
        """Better options are smaller: what fits, then few faults, then few stages."""
        if self.fit is None:
            return (True,)
        misfit = (not self.fit.runs, not self.fit.is_full)
        return (False, *misfit, *map(bool, self.faults), self.layout.pp_size)

    @property
    def against(self) -> str:
        """In a few words what is wrong with it, "" for nothing."""
        if self.fit is None:
            return f"is refused ({self.refused})"
        if not self.fit.runs:
            return f"does not fit by {sized(self.fit.short_bytes)} on rank {self.fit.poorest_rank}"
        reasons = [fault for fault in self.faults if fault]
        if not self.fit.is_full:
            held = f"{self.fit.num_blocks} of {self.fit.wanted_blocks} KV blocks"
            reasons.insert(0, f"has room for {held}")
        return ", ".join(reasons)


@dataclass(frozen=True)
class Choice:
    """The layout to use, and in one line why."""

    option: Option
    reason: str

    @property
    def layout(self) -> ParallelLayout:
        return self.option.layout


def choose_layout(
    work: Workload, n_ranks: int, machine: Machine, *, tp: Size = "auto", pp: Size = "auto"
) -> Choice:
    """The best layout of `n_ranks` ranks; an axis that has a number keeps it.

    What fits comes first; then tp as wide as it can be without leaving a host, copying KV heads or
    dealing them unevenly. Raises UsageError when the model cannot be cut so.
    """
    found = options(work, n_ranks, machine, tp=tp, pp=pp)
    if not found:
        raise UsageError(
            f"no layout with tp {tp} and pp {pp} has {n_ranks} ranks; start another number of "
            f"them, or leave both sizes to auto"
        )
    best = min(found, key=lambda option: option.order)
    if best.fit is None:
        raise UsageError(f"no layout of {n_ranks} ranks: {best.refused}")
    reason = _reason(best, found)
    if n_ranks == 1 and work.device_type == "cpu":
        reason += "; one process uses all cores of this host"
    return Choice(best, reason)


def options(
    work: Workload, n_ranks: int, machine: Machine, *, tp: Size = "auto", pp: Size = "auto"
) -> list[Option]:
    """Every layout of one replica over `n_ranks` with these sizes, by ascending pp_size."""
    return [
        judge(work, ParallelLayout(n_ranks // pp_size, pp_size), machine)
        for pp_size in range(1, n_ranks + 1)
        if n_ranks % pp_size == 0
        and tp in ("auto", None, n_ranks // pp_size)
        and pp in ("auto", None, pp_size)
    ]


def judge(work: Workload, layout: ParallelLayout, machine: Machine) -> Option:
    """`layout` on `machine`. Raises UnknownNameError where the architecture has no model at all."""
    try:
        found = footprint(work, layout)
    except UnknownNameError:
        raise
    except UsageError as error:
        return Option(layout, refused=str(error))
    return Option(
        layout,
        found,
        fit(found, work, memory_bytes=machine.rank_bytes(layout.world_size)),
        faults=_faults(work.model, layout, machine.ranks_a_host),
    )


def fit(found: Footprint, work: Workload, *, memory_bytes: int) -> Fit:
    """`found` in `memory_bytes` a rank, by the rules by which the engine sizes its KV cache."""
    config, ring_blocks = work.config, work.ring_blocks
    needed = needed_blocks(config, ring_blocks=ring_blocks)
    num_blocks, shorts = [], []
    for rank in found.ranks:
        left = memory_bytes - rank.weight_bytes
        num_blocks.append(
            blocks_that_fit(
                config,
                ring_blocks=ring_blocks,
                left_bytes=left,
                activation_bytes=rank.step_bytes,
                block_bytes=rank.block_bytes,
            )
        )
        # memory_fraction of what is left may be taken: so much must be left, rounded up
        must_be_left = -int(-needed * rank.block_bytes // config.memory_fraction)
        lacking = must_be_left + rank.step_bytes - left
        shorts.append(max(1, lacking) if num_blocks[-1] < needed else 0)
    short, fewest = max(shorts), min(num_blocks)
    poorest = shorts.index(short) if short else num_blocks.index(fewest)
    wanted = wanted_blocks(config, ring_blocks=ring_blocks)
    return Fit(memory_bytes, fewest, wanted, short, poorest)


def _faults(model: ModelConfig, layout: ParallelLayout, ranks_a_host: int) -> tuple[str, ...]:
    tp_size, n_kv_heads = layout.tp_size, model.n_kv_heads
    on_host = min(ranks_a_host, layout.world_size)
    spans = on_host % tp_size != 0  # then some tp group has ranks on two hosts
    copies = tp_size > n_kv_heads
    uneven = not copies and n_kv_heads % tp_size != 0
    return (
        f"would span hosts of {ranks_a_host} ranks" if spans else "",
        "would copy KV heads" if copies else "",
        f"would deal {n_kv_heads} KV heads unevenly" if uneven else "",
    )


def named(layout: ParallelLayout) -> str:
    """A layout for people."""
    n_ranks = layout.world_size
    replicas = f" x {layout.dp_size} replicas" if layout.dp_size > 1 else ""
    return (
        f"tp {layout.tp_size} x pp {layout.pp_size}{replicas} "
        f"({n_ranks} rank{'s' if n_ranks > 1 else ''})"
    )


def _reason(best: Option, found: Sequence[Option]) -> str:
    """What was chosen, what is wrong with it, and why not the layouts with fewer stages."""
    parts = [named(best.layout)]
    if best.against:
        parts.append(f"it {best.against}")
    wider = [option for option in found if option.layout.pp_size < best.layout.pp_size]
    parts += [f"tp {option.layout.tp_size} {option.against}" for option in wider if option.against]
    return "; ".join(parts)
