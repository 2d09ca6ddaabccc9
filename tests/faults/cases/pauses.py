"""P01, P04, P05: ranks that never come, stop for ever, or stop for a while."""

from __future__ import annotations

import signal
import socket
import time

from tests.faults.case import Case, Outcome
from tests.faults.scene import Scene, answer_of_one_process, answers

INIT_LIMIT_S = 8.0
SLACK_S = 2.0
STOPPED_S = 8.0
REAPED_S = 15.0
N_TOKENS = ("--n_tokens", "300")


def absent_rank(scene: Scene) -> list[Outcome]:
    job = scene.launch("absent", flags=("--init_timeout", str(INIT_LIMIT_S)))
    began = job.wait_for("building").time_s
    detect_s = job.wait_gone(
        [job.ranks[0]], since=began, limit_s=INIT_LIMIT_S + SLACK_S, who="rank 0"
    )
    status = job.wait_end(deadline_s=REAPED_S)
    job.check(detect_s >= INIT_LIMIT_S - SLACK_S, f"rank 0 gave up after {detect_s:.1f} s")
    job.check(status == 75, f"the launcher ends with {status}, not 75")
    line = job.require(r"rank 1 did not .*8(\.0)? s", what="who is missing")
    return [Outcome(job.codes, line, detect_s), absent_node(scene)]


def absent_node(scene: Scene) -> Outcome:
    """The launcher of node 0 waits for a second host that nobody has started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = ("--nnodes", "2", "--node_rank", "0", "--master_addr", "127.0.0.1")
    limit = ("--master_port", str(port), "--init_timeout", str(INIT_LIMIT_S))
    began = time.monotonic()
    job = scene.launch("decode", flags=(*meeting, *limit))
    status = job.wait_end(deadline_s=INIT_LIMIT_S + 20)
    detect_s = time.monotonic() - began
    job.check(status == 75, f"the launcher ends with {status}, not 75")
    job.check(not job.ranks, "ranks were started without the second node")
    return Outcome(job.codes, job.require("node_rank 1", what="the missing node"), detect_s)


def stop_for_ever(scene: Scene) -> list[Outcome]:
    outcomes = []
    for rank in range(2):
        job = scene.launch("decode", "--n_tokens", "4000", flags=("--tp", "2"))
        job.wait_for("token 20$")
        pids = job.ranks
        began = job.signal(pids[rank], signal.SIGSTOP)
        detect_s = job.wait_gone([pids[1 - rank]], since=began, limit_s=STOPPED_S)
        job.wait_gone(pids.values(), since=began, limit_s=REAPED_S, who="the stopped rank")
        status = job.wait_end(deadline_s=REAPED_S)
        job.check(status == 75, f"the launcher ends with {status}, not 75")
        code = job.exit_code(1 - rank)
        job.check(code == 75, f"rank {1 - rank} ends with {code}, not 75")
        line = job.require(rf"rank {rank} \(\S+, pid {pids[rank]}\).*", what="who was stopped")
        job.check("Traceback" not in job.text, "a traceback is shown")
        outcomes.append(Outcome(job.codes, line, detect_s))
    return outcomes


def stop_for_a_while(scene: Scene) -> list[Outcome]:
    outcomes = []
    for rank in range(2):
        job = scene.launch("decode", *N_TOKENS, flags=("--tp", "2"))
        job.wait_for("token 20$")
        pid = job.ranks[rank]
        job.signal(pid, signal.SIGSTOP)
        time.sleep(2)
        job.signal(pid, signal.SIGCONT)
        status = job.wait_end()
        job.check(status == 0, f"the launcher ends with {status}, not 0")
        job.check(answers(job.lines("stdout")) == [answer_of_one_process(*N_TOKENS)], "answer")
        n_warnings = job.count("silent for")
        job.check(n_warnings == 1, f"{n_warnings} warnings about the pause")
        line = job.require(rf"rank {rank} \(.*silent for", what="who was silent")
        outcomes.append(Outcome(job.codes, line))
    return outcomes


CASES = [
    Case(
        "P01",
        "rank 1 never looks for the others; node 1 of 2 is never started (limit 8 s)",
        "75 at the limit ± 2 s, names the missing rank or node",
        absent_rank,
    ),
    Case(
        "P04",
        "SIGSTOP to rank r in decode, for ever, every r of 2",
        "survivors gone ≤ 8 s with 75, names r; the stopped process is gone ≤ 15 s",
        stop_for_ever,
        kind="stopped",
    ),
    Case(
        "P05",
        "SIGSTOP to rank r for 2 s, then SIGCONT, every r of 2",
        "0; the answer of one process, one warning that names r",
        stop_for_a_while,
    ),
]
