"""Walks over all bad inputs on one rank; as a program, the walk of a rank that was launched.

A walk catches each error and goes on, so it also shows that a refusal leaves the ranks able to
work: builds of other layouts, and other calls on the same model, come after it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from llama.engine.sequence import SamplingParams
from llama.generation import Llama
from llama.llm import LLM
from tests.helpers.bad_builds import builds_through, differing_builds
from tests.helpers.bad_calls import CALLS, LLM_CALLS, differing_calls
from tests.helpers.refusals import FACES, GOOD_PROMPT, Refusal, Seen, build, caught


def walk_builds(folder: Path, rank: int) -> Iterator[tuple[str, Seen, Refusal]]:
    """Every build that must fail on rank `rank` of two, one after the other."""
    for face in FACES:
        for name, (changes, refusal) in (builds_through(face) | differing_builds(rank)).items():
            seen = caught(lambda: build(folder, face, **changes))  # noqa: B023
            yield f"{face}: {name}", seen, refusal


def walk_calls(folder: Path, rank: int) -> Iterator[tuple[str, Seen, Refusal]]:
    """Every call that must fail on rank `rank` of two, on one Llama and one LLM."""
    llama, llm = build(folder, "Llama", tp=1, pp=2), build(folder, "LLM", tp=1, pp=2)
    assert isinstance(llama, Llama) and isinstance(llm, LLM)
    for name, (call, refusal) in (CALLS | differing_calls(rank)).items():
        yield f"Llama: {name}", caught(lambda: call(llama)), refusal  # noqa: B023
    for name, (llm_call, refusal) in LLM_CALLS.items():
        yield f"LLM: {name}", caught(lambda: llm_call(llm)), refusal  # noqa: B023
    if not same_answers(llama, llm):
        raise AssertionError("the two models answer differently after all these errors")


def same_answers(llama: Llama, llm: LLM) -> bool:
    ((row,), _) = llama.generate([GOOD_PROMPT], 4, temperature=0)
    (output,) = llm.generate(GOOD_PROMPT, SamplingParams(temperature=0, max_tokens=4))
    return len(row) > 0 and row == list(output.token_ids)


def walk(folder: Path, rank: int) -> dict[str, str]:
    """What ended in another way than it must, by name."""
    wrong = {}
    for walker in (walk_builds, walk_calls):
        for name, seen, refusal in walker(folder, rank):
            if not refusal.fits(seen):
                wrong[name] = f"{seen} is not {refusal}"
    return wrong


if __name__ == "__main__":
    files, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    found = {"optimised": not __debug__, "wrong": walk(files, rank)}
    (out / f"rank{rank}.json").write_text(json.dumps(found))
