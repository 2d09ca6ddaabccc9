"""What moves data between the ranks of one host: their shared memory, or gloo like everywhere else.

A choice beside the backend's: torch's groups are made all the same, and carry what crosses hosts.
Pure: the same facts give the same choice on every rank. Whether a host's memory can really be
shared shows when it is tried, in `sharing`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llama.errors import HardwareError, UnknownNameError
from llama.parallel.device import DeviceFacts

TRANSPORTS = ("auto", "shm", "gloo")
_CANNOT = "transport 'shm' cannot be used"


@dataclass(frozen=True)
class TransportChoice:
    """What carries data within a host, "none" for one process, and why, in one line.

    `is_asked`: the user wants exactly this. `is_fallback`: it stands in for one that failed.
    """

    name: Literal["shm", "gloo", "none"]
    reason: str
    is_asked: bool = False
    is_fallback: bool = False

    def log_level(self, rank: int = 0) -> int:
        """How loudly `rank` says so: one warning is enough."""
        return logging.WARNING if self.is_fallback and rank == 0 else logging.INFO

    def instead(self, problem: HardwareError) -> TransportChoice:
        """gloo, because of `problem`. Raises HardwareError where shared memory was asked for."""
        if self.is_asked:
            raise HardwareError(
                f"{_CANNOT}: {problem}; leave the transport open or ask for 'gloo'"
            ) from problem
        return replace(self, name="gloo", reason=f"{_CANNOT}: {problem}", is_fallback=True)


def choose_transport(
    facts: Sequence[DeviceFacts], *, kind: str, asked: str | None = None
) -> TransportChoice:
    """For ranks with these `facts` that compute on devices of type `kind`.

    `asked` is a name of TRANSPORTS; None is "auto", which takes shared memory wherever two ranks
    have it in common. Raises UnknownNameError, and HardwareError for what cannot be had.
    """
    if asked is not None and asked not in TRANSPORTS:
        raise UnknownNameError(f"unknown transport {asked!r}; known: {', '.join(TRANSPORTS)}")
    is_asked = asked == "shm"
    if len(facts) == 1:
        return TransportChoice("none", "one process")
    if asked == "gloo":
        return TransportChoice("gloo", "transport gloo was asked for", is_asked=True)
    n_ranks = Counter(fact.shared_memory for fact in facts)
    why_not = ""
    if kind != "cpu":
        why_not = f"it moves CPU memory only and the ranks compute on device {kind}"
    elif max(n_ranks.values()) == 1:
        why_not = f"no two of the {len(facts)} ranks share a host's memory"
    if why_not and is_asked:
        raise HardwareError(f"{_CANNOT}: {why_not}; leave the transport open or ask for 'gloo'")
    if why_not:
        return TransportChoice("gloo", why_not)
    if len(n_ranks) == 1:
        return TransportChoice("shm", "all ranks share one host's memory", is_asked=is_asked)
    reason = f"within each of {len(n_ranks)} hosts, gloo between them"
    return TransportChoice("shm", reason, is_asked=is_asked)
