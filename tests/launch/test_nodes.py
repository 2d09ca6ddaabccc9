"""Launchers that meet on this machine: who is where, who is missing, sent away, or gone."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from launch import meeting, node_watch
from launch.nodes import NodeRequest, Nodes, address_of_node_0, meet_nodes
from llama.errors import HardwareError, LlamaError, RankMismatchError, RankTimeoutError, UsageError
from llama.parallel.meeting.addresses import address_for_others
from llama.parallel.meeting.stores import host_store
from tests.helpers.programs import wait_until

LOOPBACK = "127.0.0.1"
NODE_0 = """
import sys, time
from launch import node_watch
from launch.nodes import NodeRequest, meet_nodes
node_watch.BEAT_S, node_watch.SILENT_S = 0.1, 1.5
request = NodeRequest(2, 0, "127.0.0.1", int(sys.argv[1]), "job 7")
with meet_nodes(request, nproc=1, timeout_s=60, say=print) as nodes:
    while True:
        print(nodes.lost(), flush=True)
        time.sleep(0.1)
"""


class Launchers:
    """Launchers of one job, each on a thread, which meet at a free port of this machine."""

    def __init__(self) -> None:
        with socket.create_server((LOOPBACK, 0)) as free:
            port: int = free.getsockname()[1]
        self.request = NodeRequest(2, 0, LOOPBACK, port, "job 7")
        self.said: list[str] = []
        self._threads = ThreadPoolExecutor(8)
        self._futures: list[Future[Nodes]] = []

    def start(
        self,
        node_rank: int,
        *,
        nnodes: int = 2,
        job_id: str = "job 7",
        nproc: int = 1,
        timeout_s: float = 60,
    ) -> Future[Nodes]:
        request = dataclasses.replace(
            self.request, node_rank=node_rank, nnodes=nnodes, job_id=job_id
        )
        future = self._threads.submit(
            meet_nodes, request, nproc=nproc, timeout_s=timeout_s, say=self.said.append
        )
        self._futures.append(future)
        return future

    def meet(self) -> tuple[Nodes, Nodes]:
        first, second = self.start(0), self.start(1)
        return first.result(60), second.result(60)

    def close(self) -> None:
        for future in self._futures:
            if future.exception(timeout=60) is None:
                future.result().__exit__(None, None, None)
        self._threads.shutdown()


@pytest.fixture
def launchers() -> Iterator[Launchers]:
    launchers = Launchers()
    yield launchers
    launchers.close()


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watch, "BEAT_S", 0.1)
    monkeypatch.setattr(node_watch, "SILENT_S", 1.5)


def refusal(future: Future[Nodes]) -> LlamaError:
    error = future.exception(timeout=60)
    assert isinstance(error, LlamaError)
    return error


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"nnodes": 0}, "--nnodes"),
        ({"nnodes": 2, "node_rank": 2, "master_addr": "a"}, "between 0 and 1"),
        ({"nnodes": 2, "node_rank": -1, "master_addr": "a"}, "--node_rank"),
        ({"nnodes": 2}, "--master_addr"),
        ({"master_port": 65536}, "--master_port"),
    ],
)
def test_request_makes_sense(values: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        NodeRequest(**values)  # type: ignore[arg-type]


def test_one_node_needs_nobody() -> None:
    with meet_nodes(NodeRequest(), nproc=3, timeout_s=10, say=pytest.fail) as nodes:
        assert (nodes.first_rank, nodes.world_size, nodes.nprocs) == (0, 3, (3,))
        assert (nodes.master_addr, nodes.hosts) == (LOOPBACK, (socket.gethostname(),))
        assert nodes.interface in {name for _, name in socket.if_nameindex()}
        assert nodes.lost() is None
        nodes.finish(1)


def test_every_node_knows_its_part(launchers: Launchers) -> None:
    futures = [launchers.start(node, nnodes=3, nproc=node + 1) for node in (2, 0, 1)]
    last, first, middle = (future.result(60) for future in futures)
    assert [nodes.first_rank for nodes in (first, middle, last)] == [0, 1, 3]
    for nodes in (first, middle, last):
        assert (nodes.nprocs, nodes.world_size) == ((1, 2, 3), 6)
        assert nodes.run_id == first.run_id
        assert (nodes.master_addr, nodes.master_port) == (LOOPBACK, launchers.request.master_port)
    last.store.set("llama/key", "seen by all")
    assert first.store.get("llama/key") == middle.store.get("llama/key") == b"seen by all"


def test_missing_nodes_are_named(launchers: Launchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PROGRESS_S", 0.2)
    nobody = launchers.start(1, timeout_s=1)
    error = refusal(nobody)
    assert isinstance(error, RankTimeoutError)
    where = f"{LOOPBACK}:{launchers.request.master_port}"
    assert f"node 1 waits for node 0 at {where} (Connection refused)" in launchers.said
    early = [launchers.start(node, nnodes=3, timeout_s=2) for node in (0, 1)]
    for future in early:
        error = refusal(future)
        assert error.exit_code in (69, 75)  # the other's launcher may have left first
    assert isinstance(refusal(early[0]), RankTimeoutError)
    assert "2 of 3 nodes have joined; missing: node_rank 2" in str(refusal(early[0]))
    assert "2 of 3 nodes have joined; missing: node_rank 2" in launchers.said


def test_strangers_are_sent_away(launchers: Launchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PROGRESS_S", 0.1)
    first = launchers.start(0)
    other_job = refusal(launchers.start(1, job_id="job 8"))
    assert other_job.exit_code == 76
    assert "--job_id 'job 7', and node 1" in str(other_job)
    assert "has 'job 8'" in str(other_job)
    other_size = refusal(launchers.start(1, nnodes=3))
    assert isinstance(other_size, RankMismatchError)
    assert "--nnodes 2" in str(other_size)
    host = socket.gethostname()
    word = f"missing: node_rank 1 ({host} came with --nnodes 3, and was sent away)"
    wait_until(lambda: any(word in line for line in launchers.said), what="node 0's word")
    second = launchers.start(1)
    assert second.result(60).run_id == first.result(60).run_id
    again = refusal(launchers.start(1))
    assert again.exit_code == 76
    assert f"node 1 is {host} (pid {os.getpid()}) already" in str(again)


def test_port_in_use(launchers: Launchers) -> None:
    with socket.create_server((LOOPBACK, launchers.request.master_port or 0)):
        error = refusal(launchers.start(0))
    assert isinstance(error, HardwareError)
    assert f"port {launchers.request.master_port} " in str(error)


def test_store_of_something_else(launchers: Launchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "TERMS_S", 0.2)
    store = host_store(LOOPBACK, launchers.request.master_port or 0, timeout_s=10)
    error = refusal(launchers.start(1))
    assert error.exit_code == 76
    assert f"the store at {LOOPBACK}:{store.port} is not that of a launcher" in str(error)


@pytest.mark.usefixtures("fast_beats")
def test_node_0_stays_until_the_others_are_done(launchers: Launchers) -> None:
    first, second = launchers.meet()
    with ThreadPoolExecutor(1) as thread:
        finishing = thread.submit(first.finish, 0)
        time.sleep(0.5)
        assert not finishing.done()
        second.finish(0)
        finishing.result(30)
    assert first.lost() is None


@pytest.mark.usefixtures("fast_beats")
def test_node_0_does_not_stay_for_ever(
    launchers: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = launchers.meet()
    first.finish(0, hurry=lambda: True)
    monkeypatch.setattr(node_watch, "STAY_S", 0.3)
    first.finish(1)


@pytest.mark.usefixtures("fast_beats")
def test_failed_and_silent_launchers_are_lost(
    launchers: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_watch, "BAD_END_S", 0.5)
    host = socket.gethostname()
    first, second = launchers.meet()
    second.finish(71)
    assert first.lost() is None  # its ranks have the first word
    what = f"the launcher of node 1 ({host}) ended with exit code 71"
    wait_until(lambda: first.lost() == what, what="node 0 to see that node 1 failed")


@pytest.mark.usefixtures("fast_beats")
def test_silent_launcher_is_lost_and_was_not_asleep_itself(launchers: Launchers) -> None:
    """Node 0 as a process that is stopped, continued, and killed."""
    port = str(launchers.request.master_port)
    process = subprocess.Popen(
        [sys.executable, "-c", NODE_0, port], stdout=subprocess.PIPE, text=True
    )
    try:
        second = launchers.start(1).result(60)
        name = f"the launcher of node 0 ({socket.gethostname()})"
        time.sleep(0.5)
        assert second.lost() is None
        process.send_signal(signal.SIGSTOP)
        wait_until(
            lambda: (second.lost() or "").startswith(f"{name} has not been heard of for 2 s"),
            what="node 1 to miss node 0",
        )
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: second.lost() is None, what="node 1 to hear node 0 again")
        process.kill()
        broke = f"the connection to {name} broke: "
        wait_until(lambda: (second.lost() or "").startswith(broke), what="node 1 to lose node 0")
    finally:
        process.kill()
        output, _ = process.communicate()
    assert set(output.splitlines()[1:]) == {"None"}  # it accused nobody


def test_every_launcher_finds_the_same_address_for_node_0() -> None:
    """Also where this machine's own name leads to 127.0.0.1 or 127.0.1.1."""
    own = socket.gethostname()
    assert address_of_node_0(own) == address_for_others(own).ip
    assert address_of_node_0("127.0.0.1") == "127.0.0.1"
