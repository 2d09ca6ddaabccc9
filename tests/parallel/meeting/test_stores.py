"""Stores that listen at one address only, and what is said when one cannot be had."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from llama.errors import HardwareError, RankTimeoutError
from llama.parallel.meeting import stores
from llama.parallel.meeting.stores import host_store, reach_store, within
from tests.helpers.programs import environment

LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize("ip", [LOOPBACK, "::1"])
def test_store_is_reached_where_it_is_and_nowhere_else(ip: str) -> None:
    store = host_store(ip, 0, timeout_s=10)
    reach_store(ip, store.port, timeout_s=10).set("key", "value")
    assert store.get("key") == b"value"
    elsewhere = "127.0.0.2" if ip == LOOPBACK else LOOPBACK
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((elsewhere, store.port), timeout=5)


def test_a_store_may_come_later() -> None:
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    problems: list[str] = []
    started = []

    def waiting(problem: str) -> None:
        problems.append(problem)
        if len(problems) == 2:
            started.append(host_store(LOOPBACK, port, timeout_s=10))

    reach_store(LOOPBACK, port, timeout_s=30, waiting=waiting).set("key", "value")
    assert started[0].get("key") == b"value"
    assert set(problems) == {"Connection refused"}


def test_nobody_there() -> None:
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RankTimeoutError, match=rf"no store at 127\.0\.0\.1:{port} within 0\.1 s"):
        reach_store(LOOPBACK, port, timeout_s=0.1)


def test_taken_port_names_its_owner() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HardwareError, match=f"port {port} of {LOOPBACK}") as caught:
            host_store(LOOPBACK, port, timeout_s=10)
    message = str(caught.value)
    assert "Address already in use" in message
    if sys.platform == "linux":
        assert f"pid {os.getpid()} (" in message


def test_another_programs_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ANSWER_S", 0.5)
    with socket.create_server((LOOPBACK, 0)) as silent:
        with pytest.raises(HardwareError, match="does not answer as a store does"):
            reach_store(LOOPBACK, silent.getsockname()[1], timeout_s=1)
        _end_stuck_call(silent)


def _end_stuck_call(silent: socket.socket) -> None:
    """Hang up on the connection attempt that was left behind, and see its thread end."""
    silent.close()
    deadline = time.monotonic() + 30
    while any(thread.name == "llama-store" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_within_gives_back_results_and_errors() -> None:
    assert within(lambda: 3, 10) == 3
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 // 0, 10)
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        within(release.wait, 0.05)
    release.set()


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("unshare"), reason="no network namespaces here")
def test_a_machine_without_loopback_is_told() -> None:
    call = "stores.host_store('127.0.0.1', 0, timeout_s=1)"
    code = f"from llama.parallel.meeting import stores; {call}"
    words = ["unshare", "--net", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment({}))
    if done.stderr.startswith("unshare: "):
        pytest.skip(done.stderr)
    assert "HardwareError: this machine does not reach its own address 127.0.0.1" in done.stderr
