"""The first failure of a job: one record in the job's store, and what the others' errors say of it.

A rank that fails writes before it goes, a launcher writes for a rank that could not, and a rank
that loses a peer reads: the transport itself knows at best the address of a closed socket.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from llama.errors import FailedElsewhereError, LlamaError, PeerLostError, RankTimeoutError
from llama.parallel.liveness.beat import Beat
from llama.parallel.liveness.whereabouts import Whereabouts, describe_place
from llama.parallel.meeting import stores

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

ENDED_KEY = "llama/ended"
"""In the job's store: what a launcher saw of the first process that ended badly."""
CAUSE_KEY = "first-failure"
"""In the store of one meeting, as the next: what a rank says of itself or of a silent peer."""
CONSEQUENCE_KEY = "first-lost-peer"
STORE_PATIENCE_S = 2.0
"""The store may have died with the rank that hosted it, or be cut off: no answer is an answer."""
_UNEXPECTED = 70
_INTERRUPTED = 130
_POLL_S = 0.05
_MAX_TRACEBACK_BYTES = 8192

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """What ended the job, and where rank `rank` was then. `error` is one line.

    Everybody exits with `exit_code`. `is_leaving` False says that the process goes on: it has hung
    up on the others, and its program may catch the error.
    """

    rank: int
    host: str
    pid: int
    phase: str
    doing: str
    step: int | None
    layer: int | None
    file: str | None
    error: str
    exit_code: int
    traceback: str = ""
    is_leaving: bool = True

    @property
    def line(self) -> str:
        """'rank 1 (hostB, pid 77) in STEP (generate, step 41, layer 3): RuntimeError: boom'."""
        return f"rank {self.rank} ({self.host}, pid {self.pid}) in {self.where}: {self.error}"

    @property
    def where(self) -> str:
        """As `Whereabouts.describe`."""
        return describe_place(vars(self))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Failure | None:
        """None for anything but a whole record: the store is open to whoever reaches its port."""
        with suppress(ValueError, RecursionError):
            values = json.loads(text)
            if isinstance(values, dict) and set(values) == {field.name for field in fields(cls)}:
                failure = cls(**values)
                return failure if failure._is_sound() else None
        return None

    def _is_sound(self) -> bool:
        numbers = (self.rank, self.pid, self.exit_code)
        places = (self.step, self.layer)
        texts = (self.host, self.phase, self.doing, self.error, self.traceback, self.file or "")
        return (
            all(type(number) is int for number in numbers)
            and all(place is None or type(place) is int for place in places)
            and all(isinstance(text, str) for text in texts)
            and type(self.is_leaving) is bool
            and 0 < self.exit_code < 256
        )


def failure_of(beat: Beat, error: str, *, exit_code: int) -> Failure:
    """What another process says of the one whose last beat that was."""
    place = {name: getattr(beat, name) for name in ("phase", "doing", "step", "layer", "file")}
    return Failure(
        rank=beat.rank, host=beat.host, pid=beat.pid, **place, error=error, exit_code=exit_code
    )


def publish_ended(job_store: Store, failure: Failure) -> None:
    """Record, for every meeting, a process that ended without a word of its own. First wins."""
    job_store.compare_set(ENDED_KEY, "", failure.to_json())


class FailureRecord:
    """One rank's access to the record; `whereabouts` is what its main thread is doing.

    `store` is the meeting's and `job_store` the job's: None as long as, or because, there are no
    others to share them with. `found` is what this process knows already, from whichever thread.
    """

    def __init__(
        self, store: Store | None, *, rank: int, host: str, job_store: Store | None = None
    ) -> None:
        self.whereabouts = Whereabouts()
        self.store = store
        self.job_store = job_store
        self.rank = rank
        self.host = host
        self.patience_s = STORE_PATIENCE_S
        """How long a lost peer's record may take; more where that peer's host may be cut off."""
        self.is_told = False
        """Whether the program has got an error for a lost peer, and so the word."""
        self.found: Failure | None = None
        self.consequence: Failure | None = None
        """A rank that lost another one, for want of a cause."""
        self._pid = os.getpid()

    def publish(self, error: BaseException, *, is_leaving: bool = True) -> None:
        """Record `error` unless another one came first. Never raises, takes at most seconds.

        A lost peer is only a consequence: it is recorded apart, and no cause has to queue behind
        it.
        """
        failure = self.about_this_rank(describe(error), exit_code=exit_code(error), error=error)
        failure = replace(failure, is_leaving=is_leaving)
        lost = isinstance(error, (PeerLostError, RankTimeoutError, FailedElsewhereError))
        self.publish_failure(failure, key=CONSEQUENCE_KEY if lost else CAUSE_KEY)

    def publish_failure(self, failure: Failure, *, key: str = CAUSE_KEY) -> None:
        """As `publish`, in words of the caller's."""
        store, first = self.store, None
        if os.getpid() != self._pid:  # a forked child is no rank, and has no connection
            return
        if store is not None:
            first = within(STORE_PATIENCE_S, lambda: _write(store, key, failure))
        if key == CAUSE_KEY:
            self.found = first or self.found or failure

    def about_this_rank(
        self, what: str, *, exit_code: int, error: BaseException | None = None
    ) -> Failure:
        """A record of this process: of `error` where it was raised, else of here and now."""
        is_foreign = error is not None and not isinstance(error, LlamaError)
        return Failure(
            rank=self.rank,
            host=self.host,
            pid=os.getpid(),
            **self.whereabouts.place(error),
            error=what,
            exit_code=exit_code,
            traceback=_shortened_trace(error) if error is not None and is_foreign else "",
        )

    def read(self) -> Failure | None:
        """The first failure; None when there is none, or the store is gone."""
        return self.found or within(STORE_PATIENCE_S, self.look)

    def look(self) -> Failure | None:
        """As `read`, but as long as the store takes, and with its errors."""
        return self.look_for_cause() or read_failure(self.store, CONSEQUENCE_KEY)

    def look_for_cause(self) -> Failure | None:
        """As `look`, but not for a rank that only lost another one."""
        return read_failure(self.store, CAUSE_KEY) or read_failure(self.job_store, ENDED_KEY)

    def explain(self, error: LlamaError) -> LlamaError:
        """`error`, for a lost peer, with the words and the exit status of what came first.

        Waits up to `patience_s` for a cause, which may come from a launcher or a third rank.
        """
        self.is_told = True
        first = self._await_cause()
        if first is None:
            return error
        explained = type(error)(f"{error}; first failure: {first.line}")
        explained.exit_code = first.exit_code
        return explained

    def _await_cause(self) -> Failure | None:
        if self.store is None:
            return self.found
        seen: list[Failure] = []
        thread = threading.Thread(target=self._poll, args=(seen,), daemon=True)
        thread.start()
        end = time.monotonic() + self.patience_s
        while self.found is None and not seen and time.monotonic() < end:
            time.sleep(_POLL_S)
        if seen and self.found is None:
            self.found = seen[0]
        return self.found or self._consequence()

    def _poll(self, seen: list[Failure]) -> None:
        """Ask the store for a cause until there is one. A store that failed once is not asked."""
        end = time.monotonic() + self.patience_s
        with suppress(Exception):
            while self.found is None and time.monotonic() < end:
                failure = self.look_for_cause()
                if failure is not None:
                    seen.append(failure)
                    return
                time.sleep(_POLL_S)

    def _consequence(self) -> Failure | None:
        """Another rank's: this one's own explains nothing."""
        first = within(_POLL_S * 4, lambda: read_failure(self.store, CONSEQUENCE_KEY))
        is_own = first is not None and (first.rank, first.pid) == (self.rank, self._pid)
        return None if is_own else first


def describe(error: BaseException) -> str:
    """Class and message on one line, as a traceback ends."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_code(error: BaseException) -> int:
    """The process status for an uncaught `error`."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int) and 0 < error.code < 256:
        return error.code
    return error.exit_code if isinstance(error, LlamaError) else _UNEXPECTED


def within(patience_s: float, ask: Callable[[], T]) -> T | None:
    """What `ask` returns, or None when it fails or takes too long; a stuck one is left behind."""
    with suppress(Exception):
        return stores.within(ask, patience_s)
    return None


def _write(store: Store, key: str, failure: Failure) -> Failure | None:
    """What is recorded afterwards: the first one, or nothing that can be read.

    Where that is this rank's own, and it had only hung up before, the record says that it leaves.
    """
    present = store.compare_set(key, "", failure.to_json())
    first = Failure.from_json(present.decode(errors="replace"))
    if first is None or (first.rank, first.pid) != (failure.rank, failure.pid):
        return first
    if failure.is_leaving and not first.is_leaving:
        first = replace(first, is_leaving=True)
        store.compare_set(key, present.decode(), first.to_json())
    return first


def read_failure(store: Store | None, key: str) -> Failure | None:
    """The record at `key`, None when there is none."""
    if store is None or not store.check([key]):  # `get` would wait for it
        return None
    return Failure.from_json(store.get(key).decode(errors="replace"))


def _shortened_trace(error: BaseException) -> str:
    """The end of the traceback, which is where the error is."""
    data = "".join(traceback.format_exception(error)).encode()
    return data[-_MAX_TRACEBACK_BYTES:].decode(errors="replace")
