"""P14, P15, P18: faults that could change an answer instead of ending the job."""

from __future__ import annotations

from tests.faults.case import Case, Outcome
from tests.faults.scene import Scene, answer_of_one_process, answers

CAUGHT_S = 5.0
SAMPLED = ("--temperature", "0.9", "--n_tokens", "60")


def mismatched_collectives(scene: Scene) -> list[Outcome]:
    outcomes = []
    for fault, operation in (
        ("order", "BROADCAST"),
        ("shape", "ALLREDUCE"),
        ("dtype", "ALLREDUCE"),
    ):
        env = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
        job = scene.launch("mismatch", fault, flags=("--tp", "2"), env=env)
        began = job.wait_for("fitting$", n=2).time_s
        detect_s = job.wait_gone(
            job.ranks.values(), since=began, limit_s=CAUGHT_S, who="after a mismatch, ranks"
        )
        status = job.wait_end(deadline_s=20)
        job.check(status in (69, 70, 76), f"the launcher ends with {status}")
        job.check(job.count("result 3") == 0, "a collective that did not fit gave a result")
        job.check(job.count(r"result \d 2\.0") == 6, "those that fit did not")
        line = job.require(rf"[Rr]ank \d.*{operation}", what="rank and operation")
        outcomes.append(Outcome(job.codes, line, detect_s))
    return outcomes


def other_seeds(scene: Scene) -> list[Outcome]:
    """Tokens are drawn at random, on ranks whose own generators differ."""
    outcomes = []
    for flags in (("--tp", "2"), ("--pp", "2")):
        job = scene.launch("seeds", *SAMPLED, flags=flags)
        status = job.wait_end()
        job.check(status == 0, f"the launcher ends with {status}, not 0")
        wanted = [answer_of_one_process(*SAMPLED)]
        job.check(answers(job.lines("stdout")) == wanted, "another answer than one process gives")
        outcomes.append(Outcome(job.codes, "(none: the answer is that of one process)"))
    return outcomes


def not_finite(scene: Scene) -> list[Outcome]:
    outcomes = []
    for nproc in (1, 2):
        job = scene.launch("not_finite", nproc=nproc, flags=("--tp", str(nproc)))
        status = job.wait_end()
        job.check(status == 0, f"the launcher ends with {status}, not 0")
        refusals = job.count(r"refused \w+: request 0: .*non-finite")
        job.check(refusals == 2 * nproc, f"{refusals} requests of {2 * nproc} were refused")
        found = answers(job.lines("stdout"))
        is_same = all(answer == found[0] for answer in found)
        job.check(len(found) == 3 * nproc and is_same, f"the answers are {found}")
        line = job.require("refused", what="the refusal")
        outcomes.append(Outcome(job.codes, line))
    return outcomes


CASES = [
    Case(
        "P14",
        "rank 1 broadcasts, or reduces another shape or dtype, while rank 0 reduces (DETAIL mode)",
        "caught ≤ 5 s, names rank and operation; no result",
        mismatched_collectives,
    ),
    Case(
        "P15",
        "random, numpy and torch seeded differently on each rank, temperature 0.9",
        "0; the answer of one process",
        other_seeds,
    ),
    Case(
        "P18",
        "NaN in the embedding, then -inf in the head; one process and TP 2",
        "that request fails with a typed error; the next one is answered as before",
        not_finite,
    ),
]
