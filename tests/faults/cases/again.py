"""P16, P17, P19: starting again after kills, who can reach a job, and disks that are full."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import Case, CaseFailed, Outcome
from tests.faults.cases.deaths import kill_rank
from tests.faults.job import Job
from tests.faults.programs.decode import DEMO
from tests.faults.scene import Scene, answer_of_one_process, answers
from tests.helpers.programs import ROOT, environment

N_RESTARTS = 20
N_TOKENS = ("--n_tokens", "800")
"""Enough lines to need another page of the disk."""
LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|\[::1\]|\[::ffff:127\.\d+\.\d+\.\d+\]")


def start_again(scene: Scene) -> list[Outcome]:
    """The launcher and its ranks are killed at once, 20 times; each next start must work."""
    for number in range(N_RESTARTS):
        job = scene.launch("meet")
        job.wait_for(r"met 2$", n=2, deadline_s=60)
        pids = [job.process.pid, *job.ranks.values()]
        for pid in pids:
            began = job.signal(pid, signal.SIGKILL)
        job.wait_gone(pids, since=began, limit_s=5, who=f"after start {number + 1}, some")
        job.wait_end()
    job = scene.launch("meet")
    (job.folder / "go").touch()
    status = job.wait_end()
    job.check(status == 0, f"the last start ends with {status}, not 0")
    return [Outcome(job.codes, f"({N_RESTARTS} of {N_RESTARTS} restarts met)")]


def listeners(scene: Scene) -> list[Outcome]:
    """All that listens while a job of one node decodes, as `ss` sees it."""
    job = scene.launch("decode", "--n_tokens", "4000", nproc=2, flags=("--tp", "2"))
    job.wait_for("token 20$")
    pids = {job.process.pid, *job.ranks.values()}
    found = [address for address, pid in listening_sockets(job) if pid in pids]
    hosts = {address.rpartition(":")[0] for address in found}
    wide = sorted(host for host in hosts if not LOOPBACK.fullmatch(host))
    job.check(not wide, f"it listens on {', '.join(wide)}")
    job.signal(job.process.pid, signal.SIGINT)
    job.wait_end()
    return [Outcome(job.codes, f"({len(found)} sockets listen, all on {', '.join(sorted(hosts))})")]


def listening_sockets(job: Job) -> list[tuple[str, int]]:
    """Address:port and pid of every listening TCP and UDP socket of this machine."""
    command = ["ss", "-ltunpH"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    found = []
    for row in listed.stdout.splitlines():
        address = row.split()[4]
        found += [(address, int(pid)) for pid in re.findall(r"pid=(\d+)", row)]
    return found


@contextmanager
def small_disk(folder: Path, limit: str = "size=1m") -> Iterator[Path]:
    """A disk of 1 MB at `folder`, or one with another limit. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def full_disk(scene: Scene) -> list[Outcome]:
    with small_disk(scene.folder / "logs") as logs:
        outcomes = [finish_without_logs(scene, logs), fail_without_logs(scene, logs)]
    # too small from the beginning; and with no room for another file when some are there
    return [*outcomes, *(convert(scene, limit) for limit in ("size=1m", "nr_inodes=4"))]


def finish_without_logs(scene: Scene, logs: Path) -> Outcome:
    """The disk of the logs runs full while ranks decode."""
    flags = ("--tp", "2", "--log_dir", str(logs / "first"))
    job = scene.launch("decode", *N_TOKENS, flags=flags)
    job.wait_for("token 20$")
    fill(logs)
    status = job.wait_end()
    job.check(status == 0, f"the launcher ends with {status}, not 0")
    job.check(answers(job.lines("stdout")) == [answer_of_one_process(*N_TOKENS)], "the answer")
    n_warnings = job.count("No space left on device")
    job.check(n_warnings == 1, f"{n_warnings} warnings about the disk")
    (logs / "filler").unlink()
    return Outcome(job.codes, job.require("No space left", what="the warning"))


def fail_without_logs(scene: Scene, logs: Path) -> Outcome:
    """The same, and then a rank is killed: nothing changes for the others."""
    flags = ("--tp", "2", "--log_dir", str(logs / "second"))
    job = scene.launch("decode", "--n_tokens", "4000", flags=flags)
    job.wait_for("token 20$")
    fill(logs)
    return kill_rank(job, 1)


def convert(scene: Scene, limit: str) -> Outcome:
    """`llama convert` to a disk that runs full: an error, and no half folder."""
    with small_disk(scene.folder / limit, limit) as disk:
        words = ["-m", "llama", "convert", str(DEMO), str(disk / "hf"), "--to", "hf"]
        done = subprocess.run(
            [sys.executable, *words, "--dtype", "float32"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(scene.marks),
            timeout=90,
        )
        left = sorted(path.name for path in disk.rglob("*"))
    last = done.stderr.strip().splitlines()[-1:]
    if done.returncode != 74 or left or "Traceback" in done.stderr:
        raise CaseFailed(f"convert ended with {done.returncode}, left {left}: {done.stderr}")
    return Outcome(f"convert {done.returncode}", "".join(last))


CASES = [
    Case(
        "P16",
        f"{N_RESTARTS} × start, kill -9 of launcher and ranks, start again",
        "every start works; nothing is left",
        start_again,
    ),
    Case(
        "P17",
        "a job of one node decodes",
        "`ss` shows no listener of it beyond loopback",
        listeners,
    ),
    Case(
        "P19",
        "the disk of --log_dir runs full, also before a kill -9; `llama convert` to a full disk",
        "decoding ends with 0 and one warning; a kill as in P02; convert leaves no partial folder",
        full_disk,
    ),
]
