"""Ranks of both makes: `python -m tests.helpers.forked PROGRAMS` runs each forked and executed.

PROGRAMS are JSON: by name, what follows `python`. Exit status, stdout and stderr of each are
written to NAME.exec.json and NAME.fork.json in the current folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.fork import ForkedRank
from launch.process import RankCommand, RankProcess


def main() -> None:
    # what a launcher has done to itself by then
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, lambda signum, frame: os._exit(99))
    own_end, passed = os.pipe()
    os.write(passed, b"x" * 100)
    os.set_inheritable(passed, True)
    for name, program in json.loads(sys.argv[1]).items():
        for kind in (RankProcess, ForkedRank):
            run(name, program, kind, own_end)


def run(name: str, program: list[str], kind: type[RankProcess], passed: int) -> None:
    label = "fork" if kind is ForkedRank else "exec"
    given = {name: text for name, text in os.environ.items() if name != "ONLY_THE_LAUNCHER"}
    command = RankCommand(
        rank=0,
        words=(sys.executable, "-u", *program),
        environ=given | {"LABEL": label, "PASSED": str(passed)},
        cpus=frozenset([min(os.sched_getaffinity(0))]),
        pass_fds=(passed,),
        is_forked=kind is ForkedRank,
    )
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        rank = kind(
            command, stdin=subprocess.DEVNULL, stdout=stdout.fileno(), stderr=stderr.fileno()
        )
        try:
            rank._process.wait()
        finally:
            rank.kill()
        found = {"status": rank.poll()}
        for stream, file in (("stdout", stdout), ("stderr", stderr)):
            file.seek(0)
            found[stream] = file.read().decode()
    Path(f"{name}.{label}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
