"""How the launchers of a job take their places in the store of node 0, one a machine.

Knows the store's keys for that and nothing of addresses, ports and ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from launch.node_watch import beat_key
from llama.errors import PeerLostError, RankMismatchError, RankTimeoutError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TERMS = "launch/terms"
SENT_AWAY = "launch/sent-away"
TERMS_S = 60.0
"""How long node 0 may take from listening to writing what all have to agree on: name servers that
do not answer come in between, see `stores.ANSWER_S`."""
ANSWER_S = 10.0
PROGRESS_S = 10.0
POLL_S = 0.1

Say = Callable[[str], None]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Node:
    """What a launcher tells the others of itself. `nonce` is unlike any other launcher's."""

    host: str
    pid: int
    nproc: int
    nonce: str


@dataclass(frozen=True)
class Terms:
    """What all launchers of a job must have been told alike, and the `run_id` that node 0 gives."""

    job_id: str
    nnodes: int
    run_id: str = ""


class Progress:
    """Says a line now and then while something is waited for, and never one for short waits."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._said_at = time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._said_at >= PROGRESS_S:
            self._said_at = time.monotonic()
            self._say(line)


class Meeting:
    """`store` of node 0 as node `node_rank` sees it; `where` names it in messages.

    Every operation raises PeerLostError when node 0 goes away.
    """

    def __init__(self, store: Store, *, node_rank: int, own: Node, where: str) -> None:
        self._store = store
        self._node_rank = node_rank
        self._own = own
        self._where = where

    def set_terms(self, terms: Terms) -> None:
        """As node 0, before anything else."""
        self._store.set(TERMS, json.dumps(asdict(terms)))

    def check_terms(self, own: Terms) -> Terms:
        """Node 0's terms. Raises RankMismatchError when this launcher's are others."""
        limit = time.monotonic() + TERMS_S
        while not self._has(TERMS):
            if time.monotonic() > limit:
                raise RankMismatchError(
                    f"the store at {self._where} is not that of a launcher like this one; does "
                    "another program have this --master_port?"
                )
            time.sleep(POLL_S)
        terms = Terms(**json.loads(self._get(TERMS)))
        for name in ("job_id", "nnodes"):
            theirs, ours = getattr(terms, name), getattr(own, name)
            if theirs != ours:
                self._leave_word(f"--{name} {ours!r}")
                raise RankMismatchError(
                    f"node 0 at {self._where} has --{name} {theirs!r}, and node {self._node_rank} "
                    f"({self._own.host}) has {ours!r}; give all nodes of a job the same, and "
                    "every job its own --master_port"
                )
        return terms

    def take_place(self) -> None:
        """Be node `node_rank`. Raises RankMismatchError when somebody else is."""
        text = json.dumps(asdict(self._own))
        key = _node_key(self._node_rank)
        taken = self._ask(lambda: self._store.compare_set(key, "", text)).decode()
        if taken != text:
            other = Node(**json.loads(taken))
            self._leave_word(f"--node_rank {self._node_rank}, which {other.host} has")
            raise RankMismatchError(
                f"node {self._node_rank} is {other.host} (pid {other.pid}) already, and now "
                f"{self._own.host} (pid {self._own.pid}) as well; give every launcher of a job "
                "its own --node_rank, and every job its own --master_port"
            )
        # after the place, and the last thing: from here on the others count on this node
        self._ask(lambda: self._store.set(beat_key(self._node_rank), "0"))

    def await_all(self, nnodes: int, *, deadline: float, progress: Progress) -> list[Node]:
        """Every node, in order, once all are there; `deadline` by the monotonic clock.

        Raises RankTimeoutError.
        """
        while missing := [node for node in range(nnodes) if not self._has(beat_key(node))]:
            state = (
                f"{nnodes - len(missing)} of {nnodes} nodes have joined; missing: "
                f"{', '.join(f'node_rank {node}' for node in missing)}{self._word()}"
            )
            if time.monotonic() > deadline:
                raise RankTimeoutError(
                    f"{state}; the time for it (--init_timeout) is over: start the launcher "
                    f"there, or look why it cannot reach {self._where}"
                )
            if self._node_rank == 0:  # one console is enough
                progress(state)
            time.sleep(POLL_S)
        return [Node(**json.loads(self._get(_node_key(node)))) for node in range(nnodes)]

    def _leave_word(self, came_with: str) -> None:
        """Node 0 would else wait for this launcher without knowing why it left."""
        word = f"{self._own.host} came with {came_with}, and was sent away"
        with suppress(PeerLostError):
            self._ask(lambda: self._store.set(SENT_AWAY, word))

    def _word(self) -> str:
        return f" ({self._get(SENT_AWAY)})" if self._has(SENT_AWAY) else ""

    def _has(self, key: str) -> bool:
        return self._ask(lambda: self._store.check([key]))

    def _get(self, key: str) -> str:
        return self._ask(lambda: self._store.get(key)).decode()

    def _ask(self, operation: Callable[[], _Result]) -> _Result:
        from llama.parallel.meeting.stores import within

        try:
            return within(operation, ANSWER_S)
        except (TimeoutError, RuntimeError) as error:  # every error of torch's stores is one
            raise PeerLostError(
                f"the launcher of node 0 at {self._where} went away before all nodes had joined "
                f"({str(error).partition(chr(10))[0]}); its own output says why"
            ) from error


def _node_key(node_rank: int) -> str:
    return f"launch/node/{node_rank}"
