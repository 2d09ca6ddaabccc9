"""Which cores each rank of this machine stays on: even shares, neighbours in memory together.

Reads what Linux says in /sys; where nothing can be read, every core is a place of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The numbers in "0-3,8,10-11", as Linux writes them; nothing for what is not such a list."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            numbers += range(first, last + 1)
    return tuple(numbers)


def order_cpus(
    usable: Collection[int],
    *,
    node_lists: Mapping[int, str],
    sibling_lists: Mapping[int, str],
) -> tuple[int, ...]:
    """The `usable` cores by memory node, and within it by physical core.

    `node_lists` has the cores of each node, `sibling_lists` those that share a physical core with
    each one: their numbers are often far apart (0 and 64), and neighbours would then share cores.
    """
    node_of = {cpu: node for node, text in node_lists.items() for cpu in parse_cpu_list(text)}

    def place(cpu: int) -> tuple[int, int, int]:
        siblings = parse_cpu_list(sibling_lists.get(cpu, "")) or (cpu,)
        return node_of.get(cpu, -1), min(siblings), cpu

    return tuple(sorted(usable, key=place))


def share(cpus: tuple[int, ...], n_ranks: int) -> tuple[frozenset[int], ...]:
    """Consecutive `cpus` for each rank, one more at most for some; empty when there are too few."""
    if len(cpus) < n_ranks:
        return (frozenset(),) * n_ranks
    bounds = [rank * len(cpus) // n_ranks for rank in range(n_ranks + 1)]
    return tuple(frozenset(cpus[start:end]) for start, end in pairwise(bounds))


def shares_of_this_machine(n_ranks: int) -> tuple[frozenset[int], ...]:
    """One share of the cores this process may use for each of `n_ranks`; empty ones off Linux."""
    if n_ranks == 1 or not hasattr(os, "sched_getaffinity"):
        return (frozenset(),) * n_ranks
    usable = os.sched_getaffinity(0)
    nodes = _numbered(SYSTEM.glob("node/node[0-9]*"), "cpulist")
    cpus = [SYSTEM / f"cpu/cpu{cpu}" for cpu in usable]
    siblings = _numbered(cpus, "topology/thread_siblings_list")
    return share(order_cpus(usable, node_lists=nodes, sibling_lists=siblings), n_ranks)


def _numbered(folders: Iterable[Path], file: str) -> dict[int, str]:
    """What `file` says in each of the `folders`, by the number in the folder's name."""
    texts = {}
    for folder in folders:
        with suppress(OSError):
            texts[int(re.sub(r"\D", "", folder.name))] = (folder / file).read_text()
    return texts
