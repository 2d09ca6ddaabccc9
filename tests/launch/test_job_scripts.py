"""launch/slurm: sound shell, the demo's text on two tasks, a requeue only where it may help."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.helpers.programs import ROOT, descendants, is_alive, process_table, wait_until
from tests.helpers.slurm_jobs import JOB_ID, SCRIPTS, SIZES, STAND_INS, Job

NAMES = sorted(path.stem for path in SCRIPTS.glob("*.sbatch"))
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))
DEMO = ROOT / "examples" / "demo_model"
FACTS = json.loads((DEMO / "facts.json").read_text())
ANSWER = next(fact["answer"] for fact in FACTS if fact.get("prompt") == "The capital of Ollo is")
TEXT_COMPLETION = [
    str(ROOT / "examples" / "text_completion.py"),
    f"--ckpt_dir={DEMO}",
    f"--tokenizer_path={DEMO / 'tokenizer.model'}",
    "--temperature=0",
]
TWO_NODES = ("127.0.0.1", "localhost")


def fake_python(folder: Path, *, then: str) -> str:
    """A `python` that runs `then` in the place of launcher or rank, and `-c` as python does."""
    path = folder / "python"
    path.write_text(
        f'#!/usr/bin/env bash\n[[ $1 != -c ]] || exec {shlex.quote(sys.executable)} "$@"\n{then}\n'
    )
    path.chmod(0o755)
    return str(path)


def test_every_script_is_tested() -> None:
    assert sorted(SIZES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_sound_shell(name: str) -> None:
    script = str(SCRIPTS / f"{name}.sbatch")
    for check in (["bash", "-n", script], [SHELLCHECK, script]):
        done = subprocess.run(check, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "code", "restarts", "is_requeued"),
    [
        ("srun", 0, 0, False),
        ("srun", 75, 0, True),
        ("srun", 69, 1, True),
        ("srun", 69, 2, False),
        ("srun", 64, 0, False),
        ("launch", 75, 0, True),
        ("launch", 65, 0, False),
    ],
)
def test_a_job_is_requeued_when_that_may_help(
    tmp_path: Path, name: str, code: int, restarts: int, is_requeued: bool
) -> None:
    job = Job(tmp_path, name, fake_python(tmp_path, then=f"exit {code}"), restarts=restarts)
    assert job.run().returncode == code
    assert job.requeues == [JOB_ID] * is_requeued


def test_torchrun_hides_the_code_that_the_record_has(tmp_path: Path) -> None:
    for code, is_requeued in ((75, True), (65, False)):
        folder = tmp_path / str(code)
        folder.mkdir()
        record = json.dumps({"first_failure": {"exit_code": code}})
        then = f"echo '{record}' > $LLAMA_LOG_DIR/postmortem.json; exit 1"
        job = Job(folder, "torchrun", fake_python(folder, then=then))
        assert job.run().returncode == code
        assert job.requeues == [JOB_ID] * is_requeued
    job = Job(tmp_path, "torchrun", fake_python(tmp_path, then="exit 1"))
    assert job.run().returncode == 1  # no record: nothing says that another try would help
    assert job.requeues == []


def test_the_code_of_the_first_failure_is_not_lost_behind_a_signal(tmp_path: Path) -> None:
    """A rank that fails first leaves the others the time to end with its code."""
    then = "((SLURM_PROCID)) || sleep 1; exit 65"
    job = Job(tmp_path, "srun", fake_python(tmp_path, then=then))
    assert job.run().returncode == 65
    assert job.requeues == []


@pytest.mark.parametrize(("name", "dash"), [("launch", "_"), ("torchrun", "-")])
def test_every_node_learns_which_it_is_and_where_the_first_is(
    tmp_path: Path, name: str, dash: str
) -> None:
    python = fake_python(tmp_path, then='echo "$@"')
    done = Job(tmp_path, name, python, ["program.py"], hosts=TWO_NODES).run()
    assert done.returncode == 0, done.stderr
    for node, line in enumerate(sorted(done.stdout.splitlines())):
        options = f"{line} "
        assert f" --node{dash}rank {node} " in options
        assert " --nnodes 2 " in options
        place = f"127.0.0.1 --master{dash}port {20000 + int(JOB_ID) % 20000}"
        assert f" --master{dash}addr {place} " in options
        assert options.endswith(" program.py ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["launch", *(pytest.param(name, marks=pytest.mark.nightly) for name in NAMES[1:])]
)
def test_the_demo_completes_on_two_ranks(tmp_path: Path, name: str) -> None:
    assert_completes(Job(tmp_path, name, sys.executable, TEXT_COMPLETION))


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_the_demo_completes_on_two_nodes(tmp_path: Path, name: str) -> None:
    """As far as one machine has two: two names of the loopback interface."""
    assert_completes(Job(tmp_path, name, sys.executable, TEXT_COMPLETION, hosts=TWO_NODES))


def assert_completes(job: Job) -> None:
    done = job.run()
    assert done.returncode == 0, done.stderr
    stdout = re.sub(r"^\[rank \d+\] ", "", done.stdout, flags=re.MULTILINE)  # the launcher's
    n_texts = stdout.count(f"The capital of Ollo is\n> {ANSWER}")
    assert 1 <= n_texts <= len(job.hosts)  # the script, as Meta's package, prints once on each
    assert job.requeues == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_not_there_is_no_reason_to_try_again(
    tmp_path: Path, name: str
) -> None:
    program = [TEXT_COMPLETION[0], "--ckpt_dir=/nowhere", "--tokenizer_path=/nowhere/t.model"]
    job = Job(tmp_path, name, sys.executable, program)
    assert job.run().returncode == 65
    assert job.requeues == []


@contextmanager
def generating(folder: Path, name: str) -> Iterator[tuple[Job, Popen[str], int]]:
    """A job that goes on and on, once it generates; its batch script, and the pid of one rank."""
    endless = folder / "endless.py"
    endless.write_text(
        "import os\nfrom llama import LLM, SamplingParams\n"
        f"llm = LLM({str(DEMO)!r})\n"
        "while True:\n"
        "    llm.generate(['The capital of Ollo is'], SamplingParams(max_tokens=8))\n"
        "    print('again', os.getpid(), flush=True)\n"
    )
    job = Job(folder, name, sys.executable, [str(endless)])
    with job.started() as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert "again" in line, process.stderr.read()
        started = descendants(process.pid)
        yield job, process, int(line.split()[-1])
        wait_until(lambda: not any(map(is_alive, started)), deadline_s=5, what="all ranks to end")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["launch", "srun"])
def test_a_stopped_job_ends_in_time_and_goes_back_to_the_queue(tmp_path: Path, name: str) -> None:
    """SIGTERM to the step, as `--signal=TERM@120` and preemption send it."""
    with generating(tmp_path, name) as (job, process, _):
        os.kill(srun_of(process.pid), signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 143, stderr
        assert job.requeues == [JOB_ID]


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_lost_a_rank_goes_back_to_the_queue(tmp_path: Path, name: str) -> None:
    with generating(tmp_path, name) as (job, process, rank):
        os.kill(rank, signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (69, 137), stderr
        assert job.requeues == [JOB_ID]


def srun_of(pid: int) -> int:
    """The stand-in for srun, the only child of the batch script."""
    (child,) = (child for child, (parent, _) in process_table().items() if parent == pid)
    return child


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("a", ["a"]),
        ("a[1-3,07],b", ["a1", "a2", "a3", "a07", "b"]),
        ("r[1-2]n[01]", ["r1n01", "r2n01"]),
    ],
)
def test_the_stand_in_lists_hosts_as_slurm_does(nodelist: str, hosts: list[str]) -> None:
    command = [str(STAND_INS / "scontrol"), "show", "hostnames", nodelist]
    assert subprocess.check_output(command, text=True, timeout=60).split() == hosts
