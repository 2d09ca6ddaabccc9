"""The first failure of a job: one line in the job's store, and what the others' errors say of it.

A rank that fails writes before it goes. A rank that loses a peer reads: the transport itself knows
at best the address of a closed socket.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from llama.errors import PeerLostError, RankTimeoutError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

CAUSE_KEY = "llama/first-failure"
CONSEQUENCE_KEY = "llama/first-lost-peer"
STORE_PATIENCE_S = 2.0
"""The store may have died with the rank that hosted it, or be cut off: no answer is an answer."""

T = TypeVar("T")


class FailureRecord:
    """One rank's access to the record. `phase` is what the rank is doing, for the record.

    `store` is None as long as, or because, there are no others to share it with.
    """

    def __init__(self, store: Store | None, *, rank: int, host: str) -> None:
        self.phase = "starting"
        self.store = store
        self._rank = rank
        self._host = host

    def write(self, error: BaseException) -> None:
        """Record `error` unless another one came first. Never raises, takes at most seconds.

        A lost peer is only a consequence: it is recorded apart, and no cause has to queue behind
        it.
        """
        is_consequence = isinstance(error, (PeerLostError, RankTimeoutError))
        key = CONSEQUENCE_KEY if is_consequence else CAUSE_KEY
        text = json.dumps(
            {
                "rank": self._rank,
                "host": self._host,
                "pid": os.getpid(),
                "phase": self.phase,
                "error": describe(error),
            }
        )
        store = self.store
        if store is not None:
            _within(STORE_PATIENCE_S, lambda: store.compare_set(key, "", text))

    def read(self) -> str | None:
        """One line about the first failure; None when there is none or the store is gone."""
        store = self.store
        if store is None:
            return None
        text = _within(STORE_PATIENCE_S, lambda: _first_present(store))
        if text is None:
            return None
        with suppress(ValueError, KeyError, TypeError):
            fields = json.loads(text)
            return (
                f"rank {fields['rank']} ({fields['host']}, pid {fields['pid']}) "
                f"while {fields['phase']}: {fields['error']}"
            )
        return None


def describe(error: BaseException) -> str:
    """Class and message on one line, as a traceback ends."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _first_present(store: Store) -> str | None:
    for key in (CAUSE_KEY, CONSEQUENCE_KEY):
        if store.check([key]):
            return store.get(key).decode()
    return None


def _within(patience_s: float, ask: Callable[[], T]) -> T | None:
    """What `ask` returns, or None when it fails or takes too long; a stuck one is left behind."""
    answers: list[T] = []

    def run() -> None:
        with suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=run, name="llama-failure-record", daemon=True)
    thread.start()
    thread.join(patience_s)
    return answers[0] if answers else None
