"""P09: SIGTERM and SIGINT to the launcher, whatever the ranks are doing."""

from __future__ import annotations

import signal

from tests.faults.case import Case, Outcome
from tests.faults.scene import Scene

LIMIT_S = 10.0
MAX_LINES = 20
MOMENTS = {
    "load": ("slow_load", ("--n_tokens", "4000"), "tensor 2$"),
    "prefill": (
        "decode",
        ("--n_tokens", "100", "--n_prompt_tokens", "16000", "--max_seq_len", "16384"),
        "generating$",
    ),
    "decode": ("decode", ("--n_tokens", "4000"), "token 20$"),
}


def interrupt(scene: Scene) -> list[Outcome]:
    return [
        interrupt_once(scene, signum, moment)
        for signum in (signal.SIGTERM, signal.SIGINT)
        for moment in MOMENTS
    ]


def interrupt_once(scene: Scene, signum: signal.Signals, moment: str) -> Outcome:
    program, options, marker = MOMENTS[moment]
    job = scene.launch(program, *options)
    job.wait_for(marker, n=2 if moment != "decode" else 1)
    pids = {job.process.pid, *job.ranks.values()}
    n_before = len(job.lines("stderr"))
    began = job.signal(job.process.pid, signum)
    detect_s = job.wait_gone(pids, since=began, limit_s=LIMIT_S, who=f"in {moment}, some")
    status = job.wait_end()
    job.check(status == 128 + signum, f"the launcher ends with {status}, not {128 + signum}")
    shown = job.lines("stderr")[n_before:]
    job.check(len(shown) <= MAX_LINES, f"{len(shown)} lines on stderr")
    job.check("Traceback" not in job.text, "a traceback is shown")
    return Outcome(job.codes, shown[-1] if shown else "", detect_s)


CASES = [
    Case(
        "P09",
        "SIGTERM and SIGINT to the launcher in load, prefill and decode",
        "all gone ≤ 10 s; 143 and 130; at most 20 lines, no traceback",
        interrupt,
    ),
]
