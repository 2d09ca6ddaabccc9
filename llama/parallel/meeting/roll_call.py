"""Who has come: the first thing that ranks do at their store, so that the missing are named.

Knows the store only. What each says of itself there also tells who shares its cores.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llama.errors import RankTimeoutError
from llama.log import get_logger
from llama.parallel.meeting.meeting_place import REMINDER_S

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PAUSE_S = 0.05
LISTENING_S = 5.0
"""How much longer than rank 0 the others wait, to hear from it who is missing."""
_GONE = "roll-call/missing"


@dataclass(frozen=True)
class Presence:
    """What a rank says of itself. `cores` are the numbers of those that it may use."""

    host: str
    pid: int
    cores: list[int]

    @classmethod
    def of_this_process(cls) -> Presence:
        if hasattr(os, "sched_getaffinity"):  # not on macOS
            cores = os.sched_getaffinity(0)
        else:
            cores = set(range(os.cpu_count() or 1))
        return cls(socket.gethostname(), os.getpid(), sorted(cores))


def roll_call(store: Store, *, rank: int, size: int, timeout_s: float) -> list[Presence]:
    """Every rank's presence, in rank order, once all have come. Collective, once for a store.

    Rank 0 logs every 10 s who is missing. Raises RankTimeoutError after `timeout_s`, in the same
    words on every rank that did come.
    """
    keys = [f"roll-call/{other}" for other in range(size)]
    store.set(keys[rank], json.dumps(asdict(Presence.of_this_process())))
    begin = time.monotonic()
    reminder_s, limit_s = REMINDER_S, timeout_s + (LISTENING_S if rank else 0)
    while not store.check(keys):
        waited_s = time.monotonic() - begin
        if rank and store.check([_GONE]):
            raise RankTimeoutError(store.get(_GONE).decode())
        if waited_s > limit_s:
            text = _describe(_present(store, keys), size=size, waited_s=timeout_s)
            if rank == 0:
                _tell(store, text, keys)
            raise RankTimeoutError(text)
        if rank == 0 and waited_s > reminder_s:
            missing = _name([r for r in range(size) if r not in _present(store, keys)])
            get_logger().warning("waiting for %s to start (%.0f s so far)", missing, waited_s)
            reminder_s += REMINDER_S
        time.sleep(_PAUSE_S)
    return [_read(store, key) for key in keys]


def share_of_cores(presences: Sequence[Presence], rank: int) -> int:
    """How many threads `rank` may run so that ranks with the same cores do not crowd each other."""
    mine = presences[rank]
    n_sharing = sum(
        other.host == mine.host and not set(mine.cores).isdisjoint(other.cores)
        for other in presences
    )
    return max(1, len(mine.cores) // n_sharing)


def _tell(store: Store, text: str, keys: Sequence[str]) -> None:
    """Leave word for the others, and stay until they had time to read it: this may be the host."""
    store.set(_GONE, text)
    time.sleep(10 * _PAUSE_S if len(_present(store, keys)) > 1 else 0)


def _present(store: Store, keys: Sequence[str]) -> dict[int, Presence]:
    return {rank: _read(store, key) for rank, key in enumerate(keys) if store.check([key])}


def _read(store: Store, key: str) -> Presence:
    return Presence(**json.loads(store.get(key)))


def _describe(present: dict[int, Presence], *, size: int, waited_s: float) -> str:
    missing = [rank for rank in range(size) if rank not in present]
    hosts: dict[str, list[int]] = {}
    for rank, presence in present.items():
        hosts.setdefault(presence.host, []).append(rank)
    came = "; ".join(f"{_name(ranks)} on {host}" for host, ranks in hosts.items())
    return (
        f"{_name(missing)} did not start within {waited_s:g} s ({len(present)} of {size} did: "
        f"{came}); look at what the missing printed, or raise LLAMA_INIT_TIMEOUT_S if they are slow"
    )


def _name(ranks: Sequence[int]) -> str:
    """'rank 3', 'ranks 1, 2, 5-8'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    texts = [f"{s[0]}-{s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(texts)}"
