"""A launcher without store and machine: `python -m tests.helpers.supervised OPTIONS CODE...`.

Every CODE is Python for one rank, which starts in milliseconds: no site-packages, no torch. OPTIONS
are JSON. The outcome is written to outcome.json in the current folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from launch import supervisor
from launch.logs import RankOutput
from launch.process import RankCommand
from launch.stops import Conversation

START = """
import os, signal, sys, time
def publish(name, text=""):
    with open(name + ".part", "w") as file:
        file.write(text)
    os.rename(name + ".part", name)
publish("pid" + os.environ["RANK"], str(os.getpid()))
"""


def main() -> None:
    options = json.loads(sys.argv[1])
    conversation = Conversation() if options.get("is_talking") else None
    announced: list[int] = []
    commands = [
        RankCommand(
            rank,
            (options.get("python", sys.executable), "-SEsu", "-c", START + code),
            {"RANK": str(rank), "READY": str(conversation.writer if conversation else "")},
            cpus=frozenset(options.get("cpus", [])),
            pass_fds=(conversation.writer,) if conversation and rank == 0 else (),
        )
        for rank, code in enumerate(sys.argv[2:])
    ]
    log_dir = options.get("log_dir")
    output = RankOutput(
        range(len(commands)),
        prefix=options.get("prefix", False),
        log_dir=Path(log_dir) if log_dir else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if "signal_at_start" in options:
        signal_at_every_start(signal.Signals[options["signal_at_start"]])
    outcome = supervisor.Supervisor(
        output,
        grace_s=options.get("grace_s", 1.0),
        conversation=conversation,
        announce=lambda end: announced.append(end.rank),
        lost=lambda: "node 1 is gone" if Path("lost").exists() else None,
    ).run(commands)
    try:
        os.waitpid(-1, os.WNOHANG)
        children = "left"
    except ChildProcessError:
        children = "none"
    found = {
        "exit_code": outcome.exit_code,
        "ends": {end.rank: end.exit_code for end in outcome.ends},
        "cause": outcome.cause.rank if outcome.cause else None,
        "stopped_by": outcome.stopped_by.name if outcome.stopped_by else None,
        "announced": announced,
        "children": children,
    }
    Path("outcome.json").write_text(json.dumps(found))


def signal_at_every_start(signum: signal.Signals) -> None:
    class Rank(supervisor.RankProcess):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            os.kill(os.getpid(), signum)

    supervisor.RankProcess = Rank  # type: ignore[misc]


if __name__ == "__main__":
    main()
