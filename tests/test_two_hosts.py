"""One job on two hosts whose own names lead to 127.0.1.1: the same text, and every way to lose it.

The hosts are network namespaces of this machine. Each has a launcher of its own, as real ones have.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers import netns, programs
from tests.helpers.netns import Host, TwoHosts
from tests.helpers.programs import ROOT, environment, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEMO = ROOT / "examples" / "demo_model"
PORT = 29501
N_TOKENS = 300
PIPELINE_ACROSS = (2, 2)
"""Ranks a host: ranks 0 and 1 are one stage, 2 and 3 the next."""
TENSOR_ACROSS = (1, 3)
STEP_S = 30
GONE_S = STEP_S + 10
DEADLINE_S = 120
WHO_AM_I = """
import os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
print("I am", *(os.environ[name] for name in names), flush=True)
"""


class Launcher:
    """`python -m launch` on one host, for one of two nodes; `text` is all that it has said."""

    def __init__(self, host: Host, log: Path, words: Sequence[str]) -> None:
        self.host = host
        self._log = log
        command = [sys.executable, "-m", "launch", "--nnodes=2", *words]
        with log.open("wb") as stdout:
            self.process = host.popen(command, environment({}), stdout=stdout, cwd=ROOT)

    @property
    def text(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def await_text(self, text: str) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.text
            return text in self.text

        wait_until(is_there, deadline_s=DEADLINE_S, what=f"{text!r} in {self._log}")


class Job:
    """Starts launchers on the two hosts, and leaves nothing behind."""

    def __init__(self, hosts: TwoHosts, folder: Path) -> None:
        self.hosts = hosts
        self._folder = folder
        self._launchers: list[Launcher] = []

    def start(self, node_rank: int, *words: str) -> Launcher:
        log = Path(self._folder, f"{len(self._launchers)}.log")
        place = (f"--node_rank={node_rank}", f"--master_addr={self.hosts.a.name}")
        host = (self.hosts.a, self.hosts.b)[node_rank]
        launcher = Launcher(host, log, [*place, f"--master_port={PORT}", *words])
        self._launchers.append(launcher)
        return launcher

    def decode(self, n_local: Sequence[int], n_tokens: int = N_TOKENS) -> tuple[Launcher, Launcher]:
        """Launchers of nodes 0 and 1 with the long decode, and so many ranks each."""
        program = ("-m", "tests.helpers.long_decode", str(DEMO), str(n_tokens))
        sizes = ("--tp=2", "--pp=2")
        a = self.start(0, *sizes, f"--nproc={n_local[0]}", *program)
        return a, self.start(1, *sizes, f"--nproc={n_local[1]}", *program)

    def close(self) -> None:
        self.hosts.heal()
        self.hosts.a.kill_all()
        self.hosts.b.kill_all()
        for launcher in self._launchers:
            launcher.wait()


@pytest.fixture
def job(hosts: TwoHosts, tmp_path: Path) -> Iterator[Job]:
    job = Job(hosts, tmp_path)
    yield job
    job.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if problem := netns.problem():
        pytest.skip(problem)
    with netns.two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def expected_text() -> str:
    """What one process says, as JSON."""
    words = ["-m", "tests.helpers.long_decode", str(DEMO), str(N_TOKENS)]
    done = programs.run(words, deadline_s=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def finish(*launchers: Launcher) -> None:
    """Wait for a good end, after which nothing is left."""
    codes = [launcher.wait() for launcher in launchers]
    assert codes == [0, 0], "\n".join(launcher.text for launcher in launchers)
    for launcher in launchers:
        assert launcher.host.pids() == []


@pytest.mark.parametrize(
    "n_local",
    [PIPELINE_ACROSS, pytest.param(TENSOR_ACROSS, marks=pytest.mark.nightly)],
)  # and one port after another
def test_text_is_that_of_one_process(
    hosts: TwoHosts, job: Job, expected_text: str, n_local: tuple[int, int]
) -> None:
    a, b = job.decode(n_local)
    a.await_text("at 20\n")
    for host in (hosts.a, hosts.b):
        listeners = re.findall(r"LISTEN\s+\d+\s+\d+\s+(\S+):(\d+)\s", host.run(["ss", "-Hltn"]))
        assert {ip for ip, _ in listeners} == {host.ip}
        assert ((hosts.a.ip, str(PORT)) in listeners) == (host is hosts.a)
    finish(a, b)
    assert f"[rank 0] {expected_text}\n" in a.text
    assert "were silent" not in a.text + b.text


@pytest.mark.nightly
def test_cut_for_good_ends_both_sides(hosts: TwoHosts, job: Job) -> None:
    a, b = job.decode(PIPELINE_ACROSS, n_tokens=4000)
    a.await_text("at 40\n")
    hosts.cut()
    wait_until(
        lambda: not hosts.a.pids() and not hosts.b.pids(),
        deadline_s=GONE_S,
        what="the ranks and launchers of both hosts to end",
    )
    assert a.wait() in (69, 75), a.text
    assert b.wait() in (69, 75), b.text
    there = re.escape(hosts.b.name)
    assert re.search(rf"\[rank [01] .*first failure: rank [23] \({there}, pid \d+\) in", a.text)
    assert re.search(rf"\[rank [23] {there}\] .*{re.escape(hosts.a.ip)}:{PORT}", b.text)


@pytest.mark.nightly
def test_short_cut_is_survived(hosts: TwoHosts, job: Job, expected_text: str) -> None:
    a, b = job.decode(PIPELINE_ACROSS)
    a.await_text("at 40\n")
    hosts.cut()
    time.sleep(2)
    hosts.heal()
    finish(a, b)
    assert f"[rank 0] {expected_text}\n" in a.text
    said = re.findall(r".*were silent for .*", a.text + b.text)
    assert len(said) == 1, said
    assert f"ranks 2, 3 ({hosts.b.name}) were silent" in said[0]


@pytest.mark.nightly
def test_late_node_and_strangers(hosts: TwoHosts, job: Job, tmp_path: Path) -> None:
    script = tmp_path / "who_am_i.py"
    script.write_text(WHO_AM_I)
    program = ("--nproc=2", str(script))
    a = job.start(0, "--job_id=7", *program)
    a.await_text("1 of 2 nodes have joined; missing: node_rank 1\n")
    stranger = job.start(1, "--job_id=8", *program)
    assert stranger.wait() == 76, stranger.text
    assert "'7'" in stranger.text
    assert "'8'" in stranger.text
    same_port = job.start(0, "--job_id=8", *program)
    assert same_port.wait() == 78, same_port.text
    assert f"port {PORT} of {hosts.a.ip}" in same_port.text
    assert f"pid {a.process.pid} (" in same_port.text
    b = job.start(1, "--job_id=7", *program)
    finish(a, b)
    said = [line for line in (a.text + b.text).splitlines() if "I am" in line]
    assert sorted(said) == [
        f"[rank {rank}] I am {rank} {rank % 2} 4 2 {rank // 2}" for rank in range(4)
    ]


@pytest.mark.nightly
def test_dead_name_server_is_told_and_survived(hosts: TwoHosts, job: Job) -> None:
    """A connection of torch's waits 10 s for it, the first one of every process."""
    with hosts.dead_name_server():
        a, b = job.decode(PIPELINE_ACROSS, n_tokens=20)
        finish(a, b)
    for launcher in (a, b):
        assert f"no name server says what {hosts.a.ip} is called" in launcher.text
