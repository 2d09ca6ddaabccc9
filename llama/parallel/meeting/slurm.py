"""How SLURM writes node lists and task counts, and which of its steps have tasks that meet.

Pure text handling. Knows no ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice, product, repeat

_STEPS_OF_ONE = ("batch", "extern", "interactive")
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""slurm.h numbers the special steps downwards from 2**32: batch, extern, interactive, pending."""


def is_task_step(step_id: str) -> bool:
    """Whether srun started this step. A batch script or salloc's shell is one process, whatever
    the task count of its job."""
    if step_id in _STEPS_OF_ONE or not step_id.isdecimal():
        return False
    return int(step_id) < _FIRST_SPECIAL_STEP


def first_host(node_list: str) -> str:
    """The first of `expand_hosts`. Raises ValueError for a list without one."""
    return next(expand_hosts(node_list))


def expand_hosts(node_list: str) -> Iterator[str]:
    """The hosts of "login,rack[1-2]n[08-10,12]" in order, as `scontrol show hostnames` gives them.

    Raises ValueError for what is no node list.
    """
    entries = re.findall(r"(?:[^][,\s]|\[[^][]*\])+", node_list)
    if not entries or ",".join(entries) != node_list.strip():
        raise ValueError(f"{node_list!r} is no SLURM node list")
    return chain.from_iterable(map(_expand, entries))


def tasks_on(node: int, tasks_per_node: str) -> int:
    """Tasks of one node, by its place in the step: "2(x3),1" stands for 2, 2, 2, 1.

    Raises ValueError for what is no such list, or has no such node.
    """
    runs = []
    for entry in tasks_per_node.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if found is None:
            raise ValueError(f"{tasks_per_node!r} is no list of tasks per node")
        runs.append(repeat(int(found[1]), int(found[2] or 1)))
    counts = list(islice(chain.from_iterable(runs), node, node + 1))
    if not counts:
        raise ValueError(f"node {node} is not among the tasks per node {tasks_per_node!r}")
    return counts[0]


def _expand(entry: str) -> Iterator[str]:
    parts = re.split(r"(\[[^]]*\])", entry)
    choices = [_numbers(part) if part.startswith("[") else (part,) for part in parts]
    return map("".join, product(*choices))


def _numbers(bracket: str) -> list[str]:
    """'[08-10,12]' as 08, 09, 10, 12: a number keeps the width of the first of its range."""
    numbers = []
    for span in bracket[1:-1].split(","):
        first, dash, last = span.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{span!r} is no range of node numbers")
        numbers += [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return numbers
