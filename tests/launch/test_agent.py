"""The agent's store: ranks on this machine reach it, nobody else does."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from launch.agent import LOOPBACK, LoopbackRendezvous


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
