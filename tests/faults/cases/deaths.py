"""P02, P03, P06-P08: ranks and launchers that die, raise, or leave too early."""

from __future__ import annotations

import signal

from tests.faults.case import Case, Outcome
from tests.faults.job import Job
from tests.faults.programs.raise_in_layer import MESSAGE, STEP
from tests.faults.scene import Scene

SURVIVORS_S = 5.0
LAUNCHER_S = 15.0
ORPHANS_S = 2.0
ENDLESS = ("--n_tokens", "4000")
GRID = ("--tp", "2", "--pp", "2")


def kill_rank(job: Job, rank: int) -> Outcome:
    """SIGKILL to `rank`: the others leave with 69, all name it, nobody's traceback is shown."""
    pids = job.ranks
    began = job.signal(pids[rank], signal.SIGKILL)
    others = {other: pid for other, pid in pids.items() if other != rank}
    detect_s = job.wait_gone(others.values(), since=began, limit_s=SURVIVORS_S)
    status = job.wait_end(deadline_s=LAUNCHER_S)
    job.check(status == 128 + signal.SIGKILL, f"the launcher ends with {status}, not 137")
    for other in others:
        code = job.exit_code(other)
        job.check(code == 69, f"rank {other} ends with {code}, not 69")
    line = job.require(rf"rank {rank} \(\S+, pid {pids[rank]}\).*", what="who was killed")
    job.check("Traceback" not in job.text, "a traceback is shown")
    return Outcome(job.codes, line, detect_s)


def kill_in_decode(scene: Scene) -> list[Outcome]:
    return [kill_in_decode_once(scene, rank) for rank in range(4)]


def kill_in_decode_once(scene: Scene, rank: int, *, n_ranks: int = 4) -> Outcome:
    flags = GRID if n_ranks == 4 else ("--tp", str(n_ranks))
    job = scene.launch("decode", *ENDLESS, nproc=n_ranks, flags=flags)
    job.wait_for("token 20$")
    return kill_rank(job, rank)


def kill_in_load(scene: Scene) -> list[Outcome]:
    outcomes = []
    for rank in range(2):
        job = scene.launch("slow_load", *ENDLESS)
        job.wait_for("tensor 2$", n=2)
        outcomes.append(kill_rank(job, rank))
    return outcomes


def raise_in_layer(scene: Scene) -> list[Outcome]:
    """The last rank of a pipeline raises in its last layer."""
    job = scene.launch("raise_in_layer", *ENDLESS, flags=("--pp", "2"))
    job.wait_for(f"token {STEP - 2}$")
    status = job.wait_end(deadline_s=30)
    job.check(status == 70, f"the launcher ends with {status}, not 70")
    for rank in job.ranks:
        code = job.exit_code(rank)
        job.check(code == 70, f"rank {rank} ends with {code}, not 70")
    n_tracebacks = job.count("Traceback")
    job.check(n_tracebacks == 1, f"{n_tracebacks} tracebacks are shown")
    job.require("raise_in_layer.py.*line", what="the place in the traceback")
    pid = job.ranks[1]
    line = job.require(
        rf"rank 1 \(\S+, pid {pid}\) in STEP \(.*step \d+, layer \d+\): RuntimeError: {MESSAGE}",
        what="rank, step, layer and error",
    )
    n_causes = job.count(f"^(?!.*first failure).*RuntimeError: {MESSAGE}")
    job.check(n_causes == 1, f"the cause is told {n_causes} times")
    return [Outcome(job.codes, line)]


def leave_early(scene: Scene) -> list[Outcome]:
    job = scene.launch("leave_early", *ENDLESS)
    left = job.wait_for("leaving$").time_s
    detect_s = job.wait_gone([job.ranks[0]], since=left, limit_s=SURVIVORS_S)
    status = job.wait_end(deadline_s=LAUNCHER_S)
    job.check(status == 69, f"the launcher ends with {status}, not 69")
    job.check(job.exit_code(1) == 0, "rank 1 did not end well")
    line = job.require(r"rank 1 \(\S+, pid \d+\).*(left|ended)", what="who left")
    return [Outcome(job.codes, line, detect_s)]


def kill_launcher(scene: Scene) -> list[Outcome]:
    moments = (("decode", "token 20$"), ("slow_load", "tensor 2$"))
    return [kill_launcher_once(scene, program, moment) for program, moment in moments]


def kill_launcher_once(scene: Scene, program: str, moment: str) -> Outcome:
    job = scene.launch(program, *ENDLESS)
    job.wait_for(moment)
    pids = job.wait_for_ranks(2)
    began = job.signal(job.process.pid, signal.SIGKILL)
    detect_s = job.wait_gone(pids.values(), since=began, limit_s=ORPHANS_S, who="the ranks")
    job.wait_end()
    return Outcome(job.codes, "(none: nobody is left to print it)", detect_s)


CASES = [
    Case(
        "P02",
        "kill -9 of rank r in decode, TP 2 × PP 2, every r in turn",
        "survivors gone ≤ 5 s with 69, launcher 137; the line names r and its pid",
        kill_in_decode,
        kind="killed",
    ),
    Case(
        "P03",
        "kill -9 of rank r while tensors are read, every r of 2",
        "as P02",
        kill_in_load,
        kind="killed",
    ),
    Case(
        "P06",
        "a layer of rank 1 raises at its fifth step, PP 2",
        "70 everywhere; one traceback, one cause with rank, step and layer",
        raise_in_layer,
    ),
    Case(
        "P07",
        "rank 1 exits 0 while rank 0 needs it",
        "a failure all the same: ≤ 5 s, 69, names rank 1",
        leave_early,
    ),
    Case(
        "P08",
        "kill -9 of the launcher, in decode and in load",
        "no rank alive after 2 s",
        kill_launcher,
    ),
]
