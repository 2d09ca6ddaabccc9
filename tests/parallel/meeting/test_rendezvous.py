"""The store where ranks meet: who hosts it, who can reach it, and what is said when it fails."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch.distributed import FileStore, TCPStore

from llama.errors import HardwareError, RankTimeoutError
from llama.parallel.meeting.addresses import address_for_others, own_addresses
from llama.parallel.meeting.launched import LOOPBACK, Launched
from llama.parallel.meeting.meeting_place import find_meeting_place
from llama.parallel.meeting.rendezvous import (
    World,
    as_ranks_see,
    job_store,
    meet,
    share_through_store,
)
from llama.parallel.meeting.roll_call import Presence
from tests.helpers.programs import started
from tests.helpers.ranks import RankInfo, run_ranks

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def test_nobody_launched_and_no_group_means_nobody_to_meet() -> None:
    assert meet(None, timeout_s=1) is None


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the variables that a meeting sets as they were."""
    for name in INTERFACES:
        monkeypatch.setenv(name, "")


@pytest.fixture
def port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])


def rank_of_2(rank: int, port: int) -> Launched:
    return Launched(rank, 2, rank, 2, LOOPBACK, port, "slurm")


def test_rank_0_hosts_the_store_on_loopback_alone(port: int) -> None:
    host = job_store(rank_of_2(0, port), 10)
    guest = job_store(rank_of_2(1, port), 10)
    host.set("word", "hello")
    assert guest.get("word") == b"hello"
    for address in ["127.0.0.2", *(a.ip for a in own_addresses() if not a.is_loopback)]:
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=5).close()


def test_gloo_and_nccl_stay_on_loopback_with_it(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    store = job_store(rank_of_2(0, port), 10)
    loopback = next(a.interface for a in own_addresses() if a.ip == LOOPBACK)
    assert [os.environ[name] for name in INTERFACES] == [loopback, "eth7"]
    del store


def test_a_process_that_meets_again_finds_the_store_it_hosts(port: int) -> None:
    first = job_store(rank_of_2(0, port), 10)
    first.set("word", "hello")
    assert job_store(rank_of_2(0, port), 10).get("word") == b"hello"


def test_a_launchers_store_and_its_attempts(port: int) -> None:
    server = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False)
    launched = replace(rank_of_2(0, port), source="torchrun", has_launcher_store=True, attempt=1)
    job_store(launched, 10).set("word", "hello")
    assert as_ranks_see(server, attempt=1).get("word") == b"hello"
    assert not as_ranks_see(server).check(["word"])


@pytest.mark.parametrize("own_name", [LOOPBACK, "own name"])
def test_a_master_on_several_hosts_is_bound_alone(port: int, own_name: str) -> None:
    """Also where the machine's own name leads to a loopback address, as Debian has it."""
    name = socket.gethostname() if own_name == "own name" else own_name
    try:
        address = address_for_others(name)
    except HardwareError as error:
        pytest.skip(str(error))
    place = find_meeting_place(
        replace(rank_of_2(0, port), local_world_size=1, master_addr=name), timeout_s=1
    )
    assert (place.ip, place.interface) == (address.ip, address.interface)
    store = place.host(timeout_s=5)
    socket.create_connection((address.ip, port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()
    del store


def test_an_address_of_another_machine_cannot_be_listened_on(port: int) -> None:
    elsewhere = replace(rank_of_2(0, port), local_world_size=1, master_addr="198.51.100.7")
    with pytest.raises(HardwareError, match=r"rank 0 cannot host.*198\.51\.100\.7.*MASTER_ADDR"):
        job_store(elsewhere, 5)


def test_a_name_that_nobody_knows(port: int) -> None:
    nowhere = replace(rank_of_2(1, port), local_world_size=1, master_addr="no-such-host.invalid")
    with pytest.raises(HardwareError, match=r"no-such-host\.invalid"):
        job_store(nowhere, 5)


def test_a_rank_0_that_does_not_come(port: int) -> None:
    with pytest.raises(RankTimeoutError, match=rf"rank 0 did not start.*:{port} within 0.5 s"):
        job_store(rank_of_2(1, port), 0.5)


def test_a_port_that_is_taken_is_a_matter_of_the_environment() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HardwareError, match=rf"port {port} of {LOOPBACK} .*MASTER_PORT"):
            meet(rank_of_2(0, port), timeout_s=5)


HOST = """
import sys, time
from llama.parallel.meeting.stores import host_store
store = host_store("127.0.0.1", int(sys.argv[1]), timeout_s=30)
print("up", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_a_host_of_the_store_that_stops(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own limits do not end such a wait."""
    monkeypatch.setattr("llama.parallel.meeting.rendezvous.LISTENING_S", 0.5)
    with started(["-c", HOST, str(port)]) as host:
        assert host.stdout is not None and host.stdout.readline() == "up\n"
        reach = job_store(rank_of_2(1, port), 30)
        monkeypatch.setattr("llama.parallel.meeting.rendezvous.job_store", lambda *_: reach)
        host.send_signal(signal.SIGSTOP)
        with pytest.raises(RankTimeoutError, match=r"could not meet at .* in time: no answer"):
            meet(rank_of_2(1, port), timeout_s=1)


def test_a_job_without_rank_1(port: int) -> None:
    with pytest.raises(RankTimeoutError, match=r"rank 1 did not start within 0.2 s \(1 of 2 did"):
        meet(rank_of_2(0, port), timeout_s=0.2)


def count_threads(info: RankInfo, port: int, wish: str, before: int) -> int:
    os.environ["OMP_NUM_THREADS"] = wish
    torch.set_num_threads(before)
    size = info.world_size
    launched = replace(rank_of_2(info.rank, port), world_size=size, local_world_size=size)
    world = meet(launched, timeout_s=30)
    assert world is not None
    share_through_store(world, "until both have met")
    return torch.get_num_threads()


def test_ranks_share_out_their_cores(port: int) -> None:
    cores = len(Presence.of_this_process().cores)
    assert run_ranks(count_threads, 2, port, "", 7) == [min(7, max(1, cores // 2))] * 2


def test_threads_that_the_user_chose_stay(port: int) -> None:
    assert run_ranks(count_threads, 2, port, "7", 7) == [7, 7]
    assert run_ranks(count_threads, 1, port, "", 1) == [1]  # by torch.set_num_threads


def share_twice(info: RankInfo) -> list[list[str]]:
    store = FileStore(info.init_file, info.world_size)
    world = World(info.rank, info.world_size, None, store, is_given=True)
    return [share_through_store(world, f"{word} {info.rank}") for word in ("first", "second")]


def test_texts_through_the_store_belong_to_their_call() -> None:
    expected = [[f"{word} {rank}" for rank in range(3)] for word in ("first", "second")]
    assert run_ranks(share_twice, 3) == [expected] * 3


def share_alone(info: RankInfo) -> None:
    store = FileStore(info.init_file, 2)
    store.set_timeout(timedelta(seconds=1))
    share_through_store(World(0, 2, None, store, is_given=True), "hello")


def test_a_rank_that_does_not_come_is_a_timeout() -> None:
    (error,) = run_ranks(share_alone, 1, expect_error=True)
    assert type(error) is RankTimeoutError
    assert "not all of 2 ranks came" in str(error)
