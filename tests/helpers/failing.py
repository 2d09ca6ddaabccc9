"""A program whose ranks come to grief: MODE FILES OUT, on ranks that something has launched.

`build NAME` and `call NAME` are bad inputs that nobody catches. In every other mode one rank, by
default 1, fails at its third step: `load` (its second file is cut off), `raise` (a RuntimeError),
`typed` (an error of this package), `kill` (SIGKILL), `leader` (rank 0, in its scheduler).
With `caught`, every rank catches its error, sees that all others got theirs, and builds anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama.errors import OutOfMemoryError
from llama.generation import Llama
from tests.helpers.bad_builds import builds_through, differing_builds
from tests.helpers.bad_calls import CALLS
from tests.helpers.programs import wait_until
from tests.helpers.refusals import GOOD_PROMPT, build, caught

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
IS_ODD = int(os.environ.get("ODD_RANK", "1")) == RANK


def model(files: Path, **changes: Any) -> Llama:
    llama = build(files, "Llama", **changes)
    assert isinstance(llama, Llama)
    return llama


def fail(mode: str) -> None:
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "typed":
        raise OutOfMemoryError("the cart is full; bring a larger one")
    raise RuntimeError("the wheel fell off")


def breaking(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """`function`, until its third call."""
    calls = []

    def broken(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            fail(mode)
        return function(*args, **options)

    return broken


def decode(llama: Llama, mode: str) -> None:
    engine = llama.model.engine
    if mode == "leader" and RANK == 0:
        vars(engine.scheduler)["schedule"] = breaking(engine.scheduler.schedule, mode)
    elif mode != "leader" and IS_ODD:
        vars(engine.stage)["forward"] = breaking(engine.stage.forward, mode)
    llama.generate([GOOD_PROMPT], 20, temperature=0)


def go_on(files: Path, out: Path, mode: str) -> None:
    """Catch, wait for the others to have caught theirs, be refused, build anew."""
    llama = model(files)
    kept = []  # as a program that logs at its end: the error keeps its traceback
    try:
        decode(llama, mode)
    except Exception as error:
        kept.append(error)
    (out / f"caught{RANK}").touch()
    wait_until(lambda: len(list(out.glob("caught*"))) == WORLD_SIZE, what="the others' errors")
    refused = caught(lambda: llama.generate([GOOD_PROMPT], 4))
    refused_stats = caught(llama.model.engine.stats)
    answer, _ = model(files).generate([GOOD_PROMPT], 4, temperature=0)
    found = {
        "error": [f"{type(error).__name__}: {error}" for error in kept],
        "refused": [refused, refused_stats],
        "answer": answer,
    }
    (out / f"rank{RANK}.json").write_text(json.dumps(found))


def main(mode: str, files: Path, out: Path, *names: str) -> None:
    (out / f"pid{RANK}").write_text(str(os.getpid()))
    if mode == "build":
        changes, _ = (builds_through("Llama") | differing_builds(RANK))[names[0]]
        model(files, **changes)
    elif mode == "call":
        CALLS[names[0]][0](model(files))
    elif mode == "load":
        model(files, ckpt_dir="truncated_shard" if IS_ODD else "good")
    elif "caught" in names:
        go_on(files, out, mode)
    else:
        decode(model(files), mode)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
