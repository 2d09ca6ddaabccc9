"""The agent: its store is for this machine's ranks alone, and none of them outlives a stop."""

from __future__ import annotations

import signal
import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from launch.agent import LOOPBACK, LoopbackRendezvous
from tests.helpers.programs import is_alive, run

STOPPED_WHILE_STARTING = """
import os, signal, sys
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from launch.agent import JobStopped, run_ranks

class Rank(subprocess_handler.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGNAL)

subprocess_handler.Popen = Rank
try:
    run_ranks([sys.executable, "-c", "import time; time.sleep(100)"], 2)
except JobStopped as stopped:
    print(stopped.signum.name)
"""


@pytest.fixture(scope="module")
def rendezvous() -> LoopbackRendezvous:
    return LoopbackRendezvous()


def port_of(rendezvous: LoopbackRendezvous) -> int:
    info = rendezvous.next_rendezvous().bootstrap_store_info
    assert info is not None
    assert info.master_addr == LOOPBACK
    return info.master_port


def test_ranks_meet_at_the_store(rendezvous: LoopbackRendezvous) -> None:
    client = TCPStore(LOOPBACK, port_of(rendezvous), timeout=timedelta(seconds=5))
    client.set("key", "value")
    assert client.get("key") == b"value"


def test_the_store_listens_on_one_address(rendezvous: LoopbackRendezvous) -> None:
    # on Linux all of 127.0.0.0/8 is this machine, so a store that listens everywhere would answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port_of(rendezvous)), timeout=5)


def test_two_jobs_do_not_share_keys() -> None:
    first, second = LoopbackRendezvous(), LoopbackRendezvous()
    assert port_of(first) != port_of(second)
    assert first.get_run_id() != second.get_run_id()


@pytest.mark.parametrize("name", [signal.SIGINT.name, signal.SIGTERM.name])
def test_a_stop_between_the_starts_of_two_ranks_leaves_none(name: str) -> None:
    # a rank left behind would hold the pipes open, and `run` would get to its deadline
    done = run(["-c", STOPPED_WHILE_STARTING.replace("SIGNAL", name)])
    *pids, end = done.stdout.split()
    assert end == name, done.stderr
    assert len(pids) == 2 and not any(is_alive(int(pid)) for pid in pids)
