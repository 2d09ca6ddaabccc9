"""SIGTERM in and outside of calls: who dies at once, who finishes first, and what stays."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from typing import Any

from llama.parallel.liveness.drain import Drain
from tests.helpers.ranks import RankDied, RankInfo, run_ranks

TERM = signal.SIGTERM


def once(info: RankInfo) -> dict[str, Any]:
    drain = Drain(is_enabled=True)
    with drain.possible():
        with drain.possible():
            os.kill(os.getpid(), TERM)
        during = drain.is_asked, signal.getsignal(TERM)
    with drain.possible():
        later = signal.getsignal(TERM)
    return {"during": during, "later": later}


def test_the_first_signal_in_a_call_is_a_question() -> None:
    dfl = signal.SIG_DFL
    assert run_ranks(once, 1) == [{"during": (True, dfl), "later": dfl}]


def outside(info: RankInfo, is_enabled: bool) -> None:
    drain = Drain(is_enabled=is_enabled)
    with drain.possible():
        if not is_enabled:
            os.kill(os.getpid(), TERM)
    os.kill(os.getpid(), TERM)


def test_outside_of_calls_and_where_nobody_launched_it_ends_the_process() -> None:
    for is_enabled in (True, False):
        (died,) = run_ranks(outside, 1, is_enabled, expect_error=True)
        assert isinstance(died, RankDied) and died.exit_code == -TERM


def twice_in_native_code(info: RankInfo) -> None:
    """Python runs no handler before the digest is there, in half a minute."""

    def ask() -> None:
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), TERM)

    with Drain(is_enabled=True).possible():
        threading.Thread(target=ask, daemon=True).start()
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 100_000_000)


def test_the_second_signal_ends_a_process_that_has_not_seen_the_first() -> None:
    (died,) = run_ranks(twice_in_native_code, 1, expect_error=True, deadline_s=25)
    assert isinstance(died, RankDied) and died.exit_code == -TERM


def with_other_handlers(info: RankInfo) -> list[Any]:
    seen: list[int] = []
    drain = Drain(is_enabled=True)
    theirs = signal.signal(TERM, lambda signum, frame: seen.append(signum))
    with drain.possible():
        os.kill(os.getpid(), TERM)
    found = [seen, drain.is_asked]
    signal.signal(TERM, theirs)
    with drain.possible():
        signal.signal(TERM, signal.SIG_IGN)  # set during a call, it stays
    found.append(signal.getsignal(TERM) is signal.SIG_IGN)
    signal.signal(TERM, signal.SIG_DFL)

    def elsewhere() -> None:
        with drain.possible():
            found.append(signal.getsignal(TERM) is signal.SIG_DFL)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    return found


def test_handlers_of_the_program_and_other_threads_are_left_alone() -> None:
    assert run_ranks(with_other_handlers, 1) == [[[TERM], False, True, True]]


def fork_in_a_call(info: RankInfo) -> tuple[int, bool]:
    drain = Drain(is_enabled=True)
    with drain.possible():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, TERM)
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status), drain.is_asked


def test_a_forked_child_dies_of_it() -> None:
    assert run_ranks(fork_in_a_call, 1) == [(TERM, False)]
