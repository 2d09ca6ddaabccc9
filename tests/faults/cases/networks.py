"""P10-P12: two hosts, made of network namespaces, whose cable can be cut."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.case import Case, CaseFailed, Outcome
from tests.faults.job import Job
from tests.faults.scene import PROGRAMS, Scene, answer_of_one_process, answers
from tests.helpers.netns import Host, TwoHosts, problem, two_hosts
from tests.helpers.programs import ROOT, environment

STEP_LIMIT_S = 5.0
CUT_S = 2.0
PORT = 29500
N_TOKENS = ("--n_tokens", "300")
GRID = ("--nproc", "2", "--tp", "2", "--pp", "2")


def start(
    scene: Scene, hosts: TwoHosts, *options: str, flags: Sequence[str] = GRID
) -> tuple[Job, Job]:
    """`decode` on both hosts; node 0 is the first. Nothing says which interface to use."""
    first, second = (
        start_node(scene, host, rank, hosts.a.ip, options, flags)
        for rank, host in enumerate((hosts.a, hosts.b))
    )
    return first, second


def start_node(
    scene: Scene,
    host: Host,
    rank: int,
    master: str,
    options: Sequence[str],
    flags: Sequence[str],
) -> Job:
    folder = scene.new_folder()
    place = ["--nnodes", "2", "--node_rank", str(rank), "--master_addr", master]
    program = ["-m", f"{PROGRAMS}.decode", str(folder), *options]
    words = [sys.executable, "-m", "launch", *place, "--master_port", str(PORT), *flags, *program]
    process = host.popen(words, environment(scene.marks), stdout=subprocess.PIPE, cwd=ROOT)
    return scene.watch(process, folder)


def check_possible() -> None:
    if reason := problem():
        raise CaseFailed(reason)


def partition(scene: Scene) -> list[Outcome]:
    check_possible()
    with two_hosts() as hosts:
        limit = ("--step_timeout", str(STEP_LIMIT_S))
        jobs = start(scene, hosts, "--n_tokens", "4000", flags=(*GRID, *limit))
        jobs[0].wait_for("token 20$")
        hosts.cut()
        began = time.monotonic()
        outcomes = []
        for job, host, other in zip(jobs, (hosts.a, hosts.b), (hosts.b, hosts.a), strict=True):
            detect_s = wait_until_empty(job, host, since=began, limit_s=STEP_LIMIT_S + 10)
            status = job.wait_end()
            job.check(status in (69, 75), f"the launcher ends with {status}")
            line = job.require(rf"(rank|node).*({other.name}|{other.ip})", what="who is lost")
            outcomes.append(Outcome(job.codes, line, detect_s))
    check_removed(hosts)
    return outcomes


def wait_until_empty(job: Job, host: Host, *, since: float, limit_s: float) -> float:
    """Seconds from `since` until no process at all is left on `host`, the launcher included."""
    while host.pids():
        if time.monotonic() - since > limit_s:
            raise job.failed(f"{host.name} has processes {limit_s:.0f} s after the cut")
        time.sleep(0.05)
    return time.monotonic() - since


def short_partition(scene: Scene) -> list[Outcome]:
    check_possible()
    with two_hosts() as hosts:
        jobs = start(scene, hosts, *N_TOKENS)
        jobs[0].wait_for("token 20$")
        hosts.cut()
        time.sleep(CUT_S)
        hosts.heal()
        outcome = finish(jobs)
    check_removed(hosts)
    n_warnings = sum(job.count("silent for") for job in jobs)
    jobs[0].check(n_warnings == 1, f"{n_warnings} warnings about the cut")
    line = next(found.text for job in jobs if (found := job.find("silent for")))
    return [Outcome(outcome.codes, line)]


def loopback_names(scene: Scene) -> list[Outcome]:
    check_possible()
    with two_hosts() as hosts:
        name = hosts.a.run(["getent", "hosts", hosts.a.name])
        if not name.startswith("127.0.1.1"):
            raise CaseFailed(f"the name of the host leads to {name}")
        outcome = finish(start(scene, hosts, *N_TOKENS))
    check_removed(hosts)
    return [outcome]


def check_removed(hosts: TwoHosts) -> None:
    """Once they are closed, no namespace of these hosts is left."""
    names = (hosts.a.name, hosts.b.name, hosts.router)
    if left := [name for name in names if Path("/run/netns", name).exists()]:
        raise CaseFailed(f"namespaces are left: {', '.join(left)}")


def finish(jobs: tuple[Job, Job]) -> Outcome:
    """Both launchers end well, and the answer is that of one process."""
    for job in jobs:
        status = job.wait_end()
        job.check(status == 0, f"a launcher ends with {status}, not 0")
    found = answers(jobs[0].lines("stdout"))
    jobs[0].check(found == [answer_of_one_process(*N_TOKENS)], "another answer")
    return Outcome(
        " | ".join(job.codes for job in jobs), "(none: the answer is that of one process)"
    )


CASES = [
    Case(
        "P10",
        f"two hosts, TP 2 × PP 2: the cable is cut in decode (step limit {STEP_LIMIT_S:.0f} s)",
        "no process on either host, launcher included, after the step limit + 10 s",
        partition,
    ),
    Case(
        "P11",
        f"two hosts, TP 2 × PP 2: the cable is cut for {CUT_S:.0f} s in decode",
        "0; the answer of one process, one warning",
        short_partition,
    ),
    Case(
        "P12",
        "two hosts whose own names lead to 127.0.1.1, no network options",
        "0; the answer of one process",
        loopback_names,
    ),
]
