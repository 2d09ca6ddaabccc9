"""What a launcher says of a rank that ended without a word of its own, to all ranks of the job.

The store may be on a machine that is gone: nothing here waits for it for long, and nothing raises.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from launch.outcome import RankEnd, manner_of
from llama.errors import PeerLostError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from llama.parallel.liveness.failure import Failure

PATIENCE_S = 1.0
ANNOUNCED_S = 2.0
"""By then an announcement has been made, or the store does not answer."""


def announce_end(job_store: Store, end: RankEnd, *, host: str) -> threading.Thread:
    """Publish how `end.rank` ended unless a record says so already. Returns at once.

    The thread that does it is to be joined, for ANNOUNCED_S, before this process ends: one that
    comes back from torch in a dying interpreter aborts it.
    """
    return _in_background(lambda: _announce(job_store, end, host))


def announce_stop(
    job_store: Store, signum: signal.Signals, *, rank: int, host: str
) -> threading.Thread:
    """Publish that this launcher, whose first rank is `rank`, was told to end. As `announce_end`.

    The other machines' ranks would only see that ranks of this one have died.
    """
    what = f"its launcher was stopped by {signum.name}"
    exit_code = 128 + signum
    return _in_background(
        lambda: _publish(job_store, rank, host, os.getpid(), what, exit_code=exit_code)
    )


def first_failure(job_store: Store, rank: int) -> Failure | None:
    """The record that the ranks have agreed on, as `rank` would see it; None when there is none."""
    from llama.parallel.liveness.failure import within

    return within(PATIENCE_S, lambda: _look(job_store, rank))


def _in_background(publish: Callable[[], None]) -> threading.Thread:
    def announce() -> None:
        with suppress(RuntimeError):  # every error of torch's stores is one
            publish()

    thread = threading.Thread(target=announce, name="announce-end", daemon=True)
    thread.start()
    return thread


def _announce(job_store: Store, end: RankEnd, host: str) -> None:
    if end.exit_code > 0 and _look(job_store, end.rank) is not None:
        return
    what = f"the process {manner_of(end)}"
    _publish(job_store, end.rank, host, end.pid, what, exit_code=PeerLostError.exit_code)


def _publish(
    job_store: Store, rank: int, host: str, pid: int, what: str, *, exit_code: int
) -> None:
    from llama.parallel.liveness.failure import Failure, publish_ended
    from llama.parallel.liveness.heartbeat import last_beat

    beat = last_beat(job_store, rank) or {}
    failure = Failure(
        rank=rank,
        host=host,
        pid=pid,
        phase=beat.get("phase", "INIT"),
        doing=beat.get("doing", "starting"),
        step=beat.get("step"),
        layer=beat.get("layer"),
        file=beat.get("file"),
        error=what,
        exit_code=exit_code,
    )
    publish_ended(job_store, failure)


def _look(job_store: Store, rank: int) -> Failure | None:
    from llama.parallel.liveness.failure import CAUSE_KEY, ENDED_KEY, Failure

    meeting = f"llama/{job_store.add(f'llama/meetings/{rank}', 0)}"
    for key in (f"{meeting}/{CAUSE_KEY}", ENDED_KEY):
        if job_store.check([key]):  # `get` would wait for it
            failure = Failure.from_json(job_store.get(key).decode())
            if failure is not None:
                return failure
    return None
