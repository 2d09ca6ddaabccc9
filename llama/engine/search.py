"""The layout for a wish; and where one does not fit, those that would."""

from __future__ import annotations

from collections.abc import Iterator

from llama.checkpoint.wording import sized
from llama.engine.choose import Choice, Option, Size, choose_layout, judge, named, options
from llama.engine.footprint import Workload
from llama.engine.machine import Machine
from llama.errors import OutOfMemoryError, UsageError
from llama.parallel.layout import ParallelLayout

RANK_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)
"""Numbers of ranks that a search goes through: those of one host, then whole hosts."""
_MOST_NAMED = 3


def pick(
    work: Workload, machine: Machine, *, tp: Size, pp: Size, n_ranks: int | None = None
) -> Choice:
    """The layout with these sizes, or where one is "auto" the best for `n_ranks`.

    Without `n_ranks` those are one a device, a CPU being one device: its ranks would share the
    memory and its bandwidth that one process uses whole, and pay for messages (half a millisecond
    for each of two sums a layer, over gloo). Of a machine that can grow they are as few as hold a
    full batch. Raises UsageError when the model cannot be cut so.
    """
    if "auto" not in (tp, pp):
        option = _as_asked(work, machine, tp=tp, pp=pp, n_ranks=n_ranks)
        return Choice(option, f"{named(option.layout)}, as asked")
    if n_ranks is not None:
        return choose_layout(work, n_ranks, machine, tp=tp, pp=pp)
    if machine.can_grow:
        return _fewest(work, machine, tp=tp, pp=pp)
    fixed = _number(tp) * _number(pp)
    n_ranks = max(fixed, machine.n_devices // fixed * fixed)
    return choose_layout(work, n_ranks, machine, tp=tp, pp=pp)


def all_options(
    work: Workload, machine: Machine, *, tp: Size, pp: Size, n_ranks: int | None = None
) -> list[Option]:
    """Every layout of `n_ranks`, by default of each number from 1 to 8, with the sizes given.

    Raises UsageError when there is none.
    """
    counts = range(1, 9) if n_ranks is None else (n_ranks,)
    found = [option for count in counts for option in options(work, count, machine, tp=tp, pp=pp)]
    if not found:
        raise UsageError(f"no layout of {counts[0]} to {counts[-1]} ranks has tp {tp} and pp {pp}")
    return found


def check_fits(option: Option, work: Workload, machine: Machine) -> None:
    """Raises OutOfMemoryError with need, have and the way out, UsageError for a refused layout."""
    if option.fit is None or option.footprint is None:
        raise UsageError(option.refused)
    if option.fit.runs:
        return
    layout, short = option.layout, option.fit.short_bytes
    have = option.fit.memory_bytes
    others = [_named(other) for other in _that_fit(work, machine, layout.world_size)]
    ways_out = (
        f"layouts that would: {', '.join(others)}"
        if others
        else f"no layout of up to {RANK_COUNTS[-1]} ranks would"
    )
    smaller = "" if work.dtype.itemsize == 2 else ", or use a 16-bit dtype"
    smaller += "" if work.config.quantize else ", or quantize int8"
    raise OutOfMemoryError(
        f"{named(layout)} does not fit: rank {option.fit.poorest_rank} "
        f"needs {sized(have + short)} to hold one sequence of max_seq_len "
        f"{work.config.max_seq_len} and has {sized(have)} ({sized(short)} too little); {ways_out}; "
        f"else lower max_seq_len{smaller}"
    )


def _as_asked(
    work: Workload, machine: Machine, *, tp: Size, pp: Size, n_ranks: int | None
) -> Option:
    tp_size, pp_size = _number(tp), _number(pp)
    if n_ranks is not None and tp is None:
        tp_size = max(1, n_ranks // pp_size)
    layout = ParallelLayout.for_world(
        n_ranks or tp_size * pp_size, tp_size=tp_size, pp_size=pp_size
    )
    option = judge(work, layout, machine)
    if option.refused:
        raise UsageError(option.refused)
    return option


def _fewest(work: Workload, machine: Machine, *, tp: Size, pp: Size) -> Choice:
    """As few ranks as hold a full batch; else as start at all; else the most there can be."""
    n_ranks = last = None
    for count in RANK_COUNTS:
        found = options(work, count, machine, tp=tp, pp=pp)
        best = min(found, key=lambda option: option.order, default=None)
        if best is None or best.fit is None:
            continue
        last = count
        if best.fit.runs and n_ranks is None:
            n_ranks = count
        if best.fit.is_full:
            n_ranks = count
            break
    if last is None:
        raise UsageError(f"no layout with tp {tp} and pp {pp}; leave both sizes to auto")
    return choose_layout(work, n_ranks or last, machine, tp=tp, pp=pp)


def _that_fit(work: Workload, machine: Machine, n_ranks: int) -> Iterator[Option]:
    """The best that fits of `n_ranks` ranks, and of each larger number, nearest first."""
    n_named = 0
    for count in (n_ranks, *(count for count in RANK_COUNTS if count > n_ranks)):
        best = min(options(work, count, machine), key=lambda option: option.order)
        if best.fit is not None and best.fit.runs:
            yield best
            n_named += 1
        if n_named == _MOST_NAMED:
            return


def _named(option: Option) -> str:
    fit = option.fit
    part = "" if fit is None or fit.is_full else f" with {fit.num_blocks} KV blocks"
    return named(option.layout) + part


def _number(size: Size) -> int:
    return size if isinstance(size, int) else 1
