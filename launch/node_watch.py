"""Whether the launchers of the other machines go on: each leaves a beat in the store they share.

Ranks are not known here. Whoever cannot be asked is silent, and silence counts only while this
process itself was awake to listen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BEAT_S = 1.0
SILENT_S = 10.0
"""After which a launcher counts as lost. Ranks give up on each other sooner, and say more."""
BAD_END_S = 5.0
"""How long ranks may go on after those of another node have failed: time for their own words."""
STAY_S = 15.0
"""How long node 0 serves the store after a bad end: longer than the others need to stop ranks."""
FAINT_S = 4.0
"""A launcher that was not heard of for so long is not waited for at a bad end."""
TELL_S = 3.0
POLL_S = 0.1


def beat_key(node_rank: int) -> str:
    """Has to exist for every node before a watch begins."""
    return f"launch/beat/{node_rank}"


class NodeWatch:
    """One launcher's view of the others. `hosts` are in the order of node ranks.

    `store` is a connection for this watch alone: an operation that a dead link blocks holds up
    every other one of the same connection.
    """

    def __init__(self, store: Store, *, own: int, hosts: Sequence[str]) -> None:
        self._store = store
        self._own = own
        self._hosts = hosts
        self._others = [node for node in range(len(hosts)) if node != own]
        self._silent_s = dict.fromkeys(self._others, 0.0)
        self._ends: dict[int, tuple[int, float]] = {}  # exit code, and when this watch learned it
        self._own_end: int | None = None
        self._n_rounds = 0
        self._rounds_seen = 0
        self._store_silent_s = 0.0
        self._asked_at = time.monotonic()
        self._broken = ""
        self._is_told = threading.Event()
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="llama-node-watch", daemon=True)
        self._thread.start()

    def lost(self) -> str | None:
        """Who is gone or has failed, in words. A second at most is counted from call to call."""
        now = time.monotonic()
        passed, self._asked_at = min(now - self._asked_at, 1.0), now
        is_answered = self._n_rounds != self._rounds_seen
        self._rounds_seen = self._n_rounds
        self._store_silent_s = 0.0 if is_answered else self._store_silent_s + passed
        for node, (exit_code, seen_at) in list(self._ends.items()):
            if exit_code and now - seen_at > BAD_END_S:
                return f"the launcher of {self._name(node)} ended with exit code {exit_code}"
        if self._broken:
            return f"the connection to the launcher of {self._name(0)} broke: {self._broken}"
        if self._store_silent_s > SILENT_S:
            return self._silence(0, self._store_silent_s)
        for node, silent_s in self._silent_s.items():
            if silent_s > SILENT_S and node not in self._ends:
                return self._silence(node, silent_s)
        return None

    def finish(self, exit_code: int, *, hurry: Callable[[], bool]) -> None:
        """See `Nodes.finish`."""
        self._own_end = exit_code
        self._wake.set()
        if self._store_silent_s < FAINT_S:
            self._is_told.wait(TELL_S)
        end = time.monotonic() + STAY_S
        while self._own == 0 and not hurry() and not self.lost():
            is_bad = exit_code != 0 or any(code for code, _ in list(self._ends.values()))
            awaited = set(self._others) - set(self._ends)
            if is_bad:
                awaited = {node for node in awaited if self._silent_s[node] < FAINT_S}
            if not awaited or (is_bad and time.monotonic() > end):
                return
            time.sleep(POLL_S)

    def close(self) -> None:
        """End the beat: a thread that comes back from torch in a dying interpreter aborts it."""
        self._is_closing = True
        self._wake.set()
        if self._store_silent_s < FAINT_S:
            self._thread.join(TELL_S)

    def _run(self) -> None:
        n_beats, heard = 0, {node: "" for node in self._others}
        heard_at = time.monotonic()
        try:
            while not self._is_closing:
                self._wake.clear()
                end, n_beats = self._own_end, n_beats + 1
                text = str(n_beats) if end is None else f"ended {end}"
                self._store.set(beat_key(self._own), text)
                beats = self._store.multi_get([beat_key(node) for node in self._others])
                now = time.monotonic()
                passed, heard_at = min(now - heard_at, 2 * BEAT_S), now
                for node, beat in zip(self._others, beats, strict=True):
                    self._hear(node, beat.decode(), heard, passed)
                self._n_rounds += 1
                if end is not None:
                    self._is_told.set()
                self._wake.wait(BEAT_S)
        except RuntimeError as error:  # every error of torch's stores is one
            self._broken = str(error).partition("\n")[0]
            self._is_told.set()

    def _hear(self, node: int, beat: str, heard: dict[int, str], passed_s: float) -> None:
        is_news = beat != heard[node]
        heard[node] = beat
        self._silent_s[node] = 0.0 if is_news else self._silent_s[node] + passed_s
        word, _, code = beat.partition(" ")
        if word == "ended" and code.isdecimal() and node not in self._ends:
            self._ends[node] = int(code), time.monotonic()

    def _name(self, node: int) -> str:
        return f"node {node} ({self._hosts[node]})"

    def _silence(self, node: int, silent_s: float) -> str:
        return f"the launcher of {self._name(node)} has not been heard of for {silent_s:.0f} s"
