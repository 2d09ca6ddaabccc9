"""`python -m launch` with real ranks: what they are given, how they end, and that none is left."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.hardware import usable_cpus
from tests.helpers.programs import descendants, is_alive, run, started, wait_until

pytestmark = pytest.mark.slow

REPORT = """
import json, os, sys
facts = {"argv": sys.argv, "env": dict(os.environ), "pid": os.getpid()}
with open(f"rank{os.environ['RANK']}.part", "w") as file:
    json.dump(facts, file)
os.rename(file.name, f"rank{os.environ['RANK']}.json")
"""
FAIL = (
    REPORT
    + """
import time
if os.environ["RANK"] == "1":
    while not os.path.exists("rank0.json"):
        time.sleep(0.01)
    END
time.sleep(600)
"""
)
SLEEP = REPORT + "import time; time.sleep(600)"


def write(folder: Path, source: str, name: str = "program.py") -> str:
    (folder / name).write_text(source)
    return name


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def test_ranks_get_their_place_and_the_options(tmp_path: Path) -> None:
    program = write(tmp_path, REPORT)
    words = ["--nproc", "2", "--tp", "1", "--pp", "2", "--backend", "gloo", "--device", "cpu"]
    words += ["--transport", "auto"]
    env = {"OMP_NUM_THREADS": None, "GLOO_SOCKET_IFNAME": None, "TORCH_CPP_LOG_LEVEL": None}
    env["LLAMA_READY_FD"] = "7"  # of a launcher around this one
    done = run(["-m", "launch", *words, program, "a b", "--tp", "9", "-m"], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    first, second = reports(tmp_path)
    assert first["argv"] == second["argv"] == [program, "a b", "--tp", "9", "-m"]
    for rank, env in enumerate([first["env"], second["env"]]):
        assert env["RANK"] == env["LOCAL_RANK"] == str(rank)
        assert env["WORLD_SIZE"] == env["LOCAL_WORLD_SIZE"] == "2"
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert env["LLAMA_TP_SIZE"] == "1" and env["LLAMA_PP_SIZE"] == "2"
        assert env["LLAMA_BACKEND"] == "gloo" and env["LLAMA_DEVICE"] == "cpu"
        assert env["LLAMA_TRANSPORT"] == "auto"
        assert int(env["OMP_NUM_THREADS"]) == max(1, usable_cpus() // 2)
        assert env["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
        assert env["TORCH_CPP_LOG_LEVEL"] == "ERROR" and "LLAMA_READY_FD" not in env


def test_log_files_limits_and_the_console(tmp_path: Path) -> None:
    program = write(tmp_path, REPORT + "print('hello'); print('no', file=sys.stderr)")
    words = ["--nproc", "2", "--log_dir", "logs", "--step_timeout", "2.5", "--job_id", "j"]
    done = run(["-m", "launch", *words, program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[rank 0] hello", "[rank 1] hello"]
    assert {"[rank 0] no", "[rank 1] no"} < set(done.stderr.splitlines())
    for rank, report in enumerate(reports(tmp_path)):
        assert sorted((tmp_path / "logs" / f"rank-{rank}.log").read_text().split()) == [
            "hello",
            "no",
        ]
        assert report["env"]["LLAMA_LOG_DIR"] == str(tmp_path / "logs")
        assert report["env"]["LLAMA_STEP_TIMEOUT_S"] == "2.5"
        assert report["env"]["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def test_the_users_thread_count_stays(tmp_path: Path) -> None:
    program = write(tmp_path, REPORT)
    done = run(
        ["-m", "launch", "--nproc", "2", program], cwd=tmp_path, env={"OMP_NUM_THREADS": "7"}
    )
    assert done.returncode == 0, done.stderr
    assert [report["env"]["OMP_NUM_THREADS"] for report in reports(tmp_path)] == ["7", "7"]


def test_a_module_is_found_like_python_finds_it(tmp_path: Path) -> None:
    write(tmp_path, REPORT, "reporting.py")
    done = run(["-m", "launch", "-m", "reporting", "--x"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = reports(tmp_path)
    assert Path(report["argv"][0]).name == "reporting.py"
    assert report["argv"][1:] == ["--x"]


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ("sys.exit(65)", 65, f"rank 1 ({socket.gethostname()}) exited with 65 (CheckpointError)"),
        pytest.param(
            *("os.kill(os.getpid(), 9)", 137, "was killed by SIGKILL"), marks=pytest.mark.nightly
        ),
    ],
)
def test_the_first_failure_ends_the_job(tmp_path: Path, end: str, status: int, line: str) -> None:
    program = write(tmp_path, FAIL.replace("END", end))
    done = run(["-m", "launch", "--nproc", "2", program], cwd=tmp_path)
    assert done.returncode == status
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [is_alive(report["pid"]) for report in reports(tmp_path)] == [False, False]


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_to_the_launcher_ends_every_rank(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    program = write(tmp_path, SLEEP)
    with started(["-m", "launch", "--nproc", "2", program], cwd=tmp_path) as launcher:
        wait_until(lambda: len(reports(tmp_path)) == 2, what="two ranks")
        assert {r["pid"] for r in reports(tmp_path)} <= set(descendants(launcher.pid))
        launcher.send_signal(signum)
        _, stderr = launcher.communicate(timeout=30)
    assert launcher.returncode == status
    assert stderr.splitlines()[-1] == f"launch: stopped by {signum.name}; every rank has ended"
    assert "Traceback" not in stderr
    assert [is_alive(report["pid"]) for report in reports(tmp_path)] == [False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nproc", "4", "--tp", "3", "setup.py"], "does not divide the world size 4"),
        (["--nproc", "four", "x.py"], "'four' is neither a number nor auto"),
        (["--frobnicate", "x.py"], "unrecognized arguments: --frobnicate"),
        (["--backend", "mpi", "setup.py"], "unknown backend 'mpi'"),
        (["--transport", "x", "setup.py"], "unknown transport 'x'; known: auto, shm, gloo"),
        ([], "required: program"),
    ],
)
def test_wrong_options_are_one_line_and_64(words: list[str], message: str) -> None:
    done = run(["-m", "launch", *words])
    assert done.returncode == 64
    (line,) = done.stderr.splitlines()
    assert line.startswith("launch: error: ") and message in line


@pytest.mark.nightly
def test_ranks_run_as_optimised_as_the_launcher(tmp_path: Path) -> None:
    program = write(tmp_path, "import sys; print(sys.flags.optimize)")
    done = run(["-O", "-m", "launch", "--nproc", "2", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[rank 0] 1", "[rank 1] 1"]


@pytest.mark.nightly
def test_too_many_ranks_for_the_cores_are_warned_of() -> None:
    most = 2 * usable_cpus()
    for n_ranks, expected in ((most, 0), (most + 1, 1)):
        done = run(
            ["-m", "launch", "--nproc", str(n_ranks), "--device", "cpu", "--dry_run", "x.py"]
        )
        assert done.returncode == 0, done.stderr
        warning = f"launch: warning: {n_ranks} ranks share {usable_cpus()} core(s)"
        assert done.stderr.count(warning) == expected


def test_dry_run_prints_a_command_that_starts_the_same_ranks(tmp_path: Path) -> None:
    program = write(tmp_path, REPORT)
    words = ["--nproc", "2", "--tp", "2", "--device", "cpu", "--dry_run"]
    done = run(["-m", "launch", *words, program, "a b"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert reports(tmp_path) == []
    (line,) = done.stdout.splitlines()
    torchrun = f"{shlex.quote(sys.executable)} -m torch.distributed.run "
    assert " torchrun " in line
    subprocess.run(
        line.replace("torchrun ", torchrun, 1),
        shell=True, cwd=tmp_path, check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    for report in reports(tmp_path):
        assert report["argv"] == [program, "a b"]
        assert report["env"]["LLAMA_TP_SIZE"] == report["env"]["WORLD_SIZE"] == "2"
        assert report["env"]["LLAMA_DEVICE"] == "cpu"
    assert len(reports(tmp_path)) == 2


def test_the_table_says_what_is_expected_of_every_rank() -> None:
    words = ["--tp", "2", "--pp", "2", "--device", "cpu", "--dry_run", "x.py"]
    done = run(["-m", "launch", *words], env={"OMP_NUM_THREADS": "3"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    title, header, *rows = lines
    assert f"4 rank(s) on {socket.gethostname()}, 3 thread(s) each" in title
    assert "expected: tp 2 x pp 2, backend gloo (" in title
    assert header.split() == ["rank", "device", "pp_rank", "tp_rank", "replica"]
    assert [row.split() for row in rows] == [
        ["0", "cpu", "0", "0", "0"],
        ["1", "cpu", "0", "1", "0"],
        ["2", "cpu", "1", "0", "0"],
        ["3", "cpu", "1", "1", "0"],
    ]


def test_the_users_own_variables_count_as_options() -> None:
    env = {"LLAMA_TP_SIZE": "1", "LLAMA_PP_SIZE": "2", "LLAMA_DEVICE": "cpu", "LLAMA_BACKEND": ""}
    done = run(["-m", "launch", "--nproc", "2", "--dry_run", "x.py"], env=env)
    assert done.returncode == 0, done.stderr
    assert "expected: tp 1 x pp 2, backend gloo (" in done.stderr


def test_a_device_that_is_not_there_is_refused_before_the_start(tmp_path: Path) -> None:
    program = write(tmp_path, REPORT)
    done = run(["-m", "launch", "--nproc", "2", "--device", "mps", program], cwd=tmp_path)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith("launch: error: device 'mps' cannot be used")
    assert reports(tmp_path) == []
