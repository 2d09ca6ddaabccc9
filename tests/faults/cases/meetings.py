"""P13: ports that are taken, and jobs that get in each other's way."""

from __future__ import annotations

import signal
import socket
import time

from tests.faults.case import Case, Outcome
from tests.faults.job import Job
from tests.faults.scene import Scene

REFUSED_S = 10.0
STATUS_S = 30.0


def port_in_use(scene: Scene) -> list[Outcome]:
    return [foreign_port(scene), two_hosts_of_one_job(scene), two_jobs_at_once(scene)]


def start_node(scene: Scene, port: int, *, rank: int, job_id: str) -> Job:
    place = ("--master_addr", "127.0.0.1", "--master_port", str(port), "--job_id", job_id)
    return scene.launch("meet", nproc=1, flags=("--nnodes", "2", "--node_rank", str(rank), *place))


def refused(job: Job, *, status: int, since: float) -> float:
    found = job.wait_end(deadline_s=REFUSED_S + 10)
    detect_s = time.monotonic() - since
    job.check(found == status, f"the launcher ends with {found}, not {status}")
    job.check(detect_s <= REFUSED_S, f"it took {detect_s:.1f} s")
    job.check("Traceback" not in job.text, "a traceback is shown")
    return detect_s


def foreign_port(scene: Scene) -> Outcome:
    """Another program listens where node 0 is to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, began = server.getsockname()[1], time.monotonic()
        job = start_node(scene, port, rank=0, job_id="tuesday")
        detect_s = refused(job, status=78, since=began)
    return Outcome(job.codes, job.require(f"{port}.*in use", what="the port"), detect_s)


def two_hosts_of_one_job(scene: Scene) -> Outcome:
    """A second node 0 of the same job, and a node 1 of another one, while the first waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    first = start_node(scene, port, rank=0, job_id="tuesday")
    first.wait_for("node_rank 1", deadline_s=STATUS_S)
    began = time.monotonic()
    second = start_node(scene, port, rank=0, job_id="tuesday")
    detect_s = refused(second, status=78, since=began)
    owner = f"{port}.*in use.*pid {first.process.pid}"
    line = second.require(owner, what="the port and who has it")
    stranger = start_node(scene, port, rank=1, job_id="wednesday")
    refused(stranger, status=76, since=time.monotonic())
    stranger.require("tuesday.*wednesday|wednesday.*tuesday", what="both jobs")
    first.check(first.process.poll() is None, "the first job did not survive the others")
    first.signal(first.process.pid, signal.SIGINT)
    first.wait_end()
    return Outcome(second.codes, line, detect_s)


def two_jobs_at_once(scene: Scene) -> Outcome:
    """Jobs of one node choose ports of their own."""
    jobs = [scene.launch("meet") for _ in range(2)]
    for job in jobs:
        job.wait_for("met 2$", n=2)
    for job in jobs:
        (job.folder / "go").touch()
    for job in jobs:
        status = job.wait_end()
        job.check(status == 0, f"the launcher ends with {status}, not 0")
    return Outcome(jobs[0].codes, "(none: both jobs met)")


CASES = [
    Case(
        "P13",
        "the port is in use; a second node 0 of the same job; a node of another job; two jobs of "
        "one node at once",
        "78 ≤ 10 s with port and owner; 76 with both jobs; who waits says so within 30 s",
        port_in_use,
    ),
]
