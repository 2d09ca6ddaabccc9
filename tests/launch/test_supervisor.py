"""The supervisor with real processes: how ranks end together, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.programs import is_alive, process_table, run, started, wait_until

SLEEP = "time.sleep(600)"
GRANDCHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-SEs", "-c", "import time; time.sleep(600)"])
publish("grandchild", str(child.pid))
"""
COUNT_TERMS = """
n = 0
def on_term(signum, frame):
    global n
    n += 1
    publish("terms" + os.environ["RANK"], str(n))
signal.signal(signal.SIGTERM, on_term)
publish("armed" + os.environ["RANK"])
"""
FINISH_ON_TERM = """
def on_term(signum, frame):
    time.sleep(0.3)
    os.write(1, b"finished\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
publish("armed" + os.environ["RANK"])
"""


def words(*codes: str, **options: Any) -> list[str]:
    return ["-m", "tests.helpers.supervised", json.dumps(options), *codes]


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def pid_in(folder: Path, name: str) -> int:
    return int((folder / name).read_text())


@contextmanager
def supervised(
    folder: Path, *codes: str, until: Sequence[str] = (), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A launcher in `folder` whose ranks have published `until`; what is left is killed."""
    with started(words(*codes, **options), cwd=folder) as launcher:
        try:
            names = [f"pid{rank}" for rank in range(len(codes))] + list(until)
            wait_until(lambda: all((folder / name).exists() for name in names), what="the ranks")
            yield launcher
        finally:
            for path in [*folder.glob("pid*"), *folder.glob("grandchild")]:
                with suppress(ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGKILL)


def nobody_left(folder: Path) -> bool:
    pids = [pid_in(folder, path.name) for path in folder.glob("pid?")]
    return not any(is_alive(pid) for pid in pids)


def test_all_end_well(tmp_path: Path) -> None:
    done = run(words("os.write(1, b'a ')", "os.write(1, b'b ')"), cwd=tmp_path)
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["a", "b"]), done.stderr
    assert outcome(tmp_path) == {
        "exit_code": 0,
        "ends": {"0": 0, "1": 0},
        "cause": None,
        "stopped_by": None,
        "announced": [],
        "children": "none",
    }


def test_the_first_failure_ends_all_even_the_stopped_and_the_stubborn(tmp_path: Path) -> None:
    """Rank 1 fails, 2 is halted, 3 ignores SIGTERM, and 0 has started a process of its own."""
    everybody = "while not all(os.path.exists(f'pid{r}') for r in range(4)): time.sleep(0.01)\n"
    done = run(
        words(
            GRANDCHILD + SLEEP,
            everybody
            + "while not os.path.exists('terms'): time.sleep(0.01)\n"
            + "while not os.path.exists('grandchild'): time.sleep(0.01)\nsys.exit(65)",
            "os.kill(os.getpid(), signal.SIGSTOP)",
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); publish('terms')\n" + SLEEP,
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path) == {
        "exit_code": 65,
        "ends": {"0": -15, "1": 65, "2": -9, "3": -9},
        "cause": 1,
        "stopped_by": None,
        "announced": [1],
        "children": "none",
    }
    assert nobody_left(tmp_path) and not is_alive(pid_in(tmp_path, "grandchild"))


def test_survivors_have_time_for_words_and_codes_of_their_own(tmp_path: Path) -> None:
    wait = "while os.path.exists('/proc/' + open('pid1').read()): time.sleep(0.01)\n"
    slow = "while not os.path.exists('pid1'): time.sleep(0.01)\n" + wait + "time.sleep(0.5)\n"
    codes = [slow + "print('said'); sys.exit(69)", "os.kill(os.getpid(), signal.SIGSEGV)"]
    done = run(words(*codes), cwd=tmp_path)
    assert done.stdout == "said\n"
    found = outcome(tmp_path)
    assert found["exit_code"] == 128 + signal.SIGSEGV and found["cause"] == 1
    assert found["ends"] == {"0": 69, "1": -11}


def test_a_lost_node_ends_the_ranks_here(tmp_path: Path) -> None:
    with supervised(tmp_path, SLEEP) as launcher:
        (tmp_path / "lost").touch()
        launcher.communicate(timeout=60)
    assert outcome(tmp_path)["exit_code"] == 69
    assert outcome(tmp_path)["ends"] == {"0": -15}


def test_one_sigterm_lets_ranks_finish(tmp_path: Path) -> None:
    armed = ["armed0", "armed1"]
    with supervised(tmp_path, FINISH_ON_TERM + SLEEP, FINISH_ON_TERM + SLEEP, until=armed) as job:
        job.send_signal(signal.SIGTERM)
        out, stderr = job.communicate(timeout=60)
    assert out == "finished\nfinished\n", stderr
    found = outcome(tmp_path)
    assert found["ends"] == {"0": 0, "1": 0} and found["announced"] == []
    assert (found["exit_code"], found["stopped_by"]) == (143, "SIGTERM")


@pytest.mark.parametrize("again", [False, True])
def test_ranks_that_do_not_finish_are_killed(tmp_path: Path, again: bool) -> None:
    """At the limit, or at once after a second signal: here the limit is too far off to be seen."""
    options = {"grace_s": 600.0 if again else 0.5, "until": ["armed0"]}
    with supervised(tmp_path, COUNT_TERMS + "while True: time.sleep(1)", **options) as launcher:
        launcher.send_signal(signal.SIGHUP)
        wait_until((tmp_path / "terms0").exists, what="the signal")
        if again:
            launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
    assert (tmp_path / "terms0").read_text() == "1"
    assert outcome(tmp_path)["ends"] == {"0": -9}
    assert outcome(tmp_path)["exit_code"] == 129


def test_ctrl_c_is_two_sigterms(tmp_path: Path) -> None:
    """The first would let a rank finish."""
    code = COUNT_TERMS + "while n < 2: time.sleep(0.01)\nsys.exit(143)"
    with supervised(tmp_path, code, until=["armed0"], grace_s=600) as launcher:
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=60)
    assert outcome(tmp_path)["ends"] == {"0": 143}
    assert outcome(tmp_path)["exit_code"] == 130


def test_a_signal_for_the_program_goes_to_every_rank(tmp_path: Path) -> None:
    code = """
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
publish("armed" + os.environ["RANK"])
while not heard: time.sleep(0.01)
"""
    with supervised(tmp_path, code, code, until=["armed0", "armed1"]) as launcher:
        launcher.send_signal(signal.SIGUSR1)
        launcher.communicate(timeout=60)
    assert outcome(tmp_path)["ends"] == {"0": 0, "1": 0}


def test_ctrl_c_is_for_rank_0_while_it_asks_for_it(tmp_path: Path) -> None:
    talk = """
n = 0
def on_interrupt(signum, frame):
    global n
    n += 1
    publish("interrupted", str(n))
signal.signal(signal.SIGINT, on_interrupt)
os.write(int(os.environ["READY"]), b"1")
publish("ready")
while not os.path.exists("enough"): time.sleep(0.01)
os.write(int(os.environ["READY"]), b"0")
publish("deaf")
time.sleep(600)
"""
    with supervised(tmp_path, talk, SLEEP, until=["ready"], is_talking=True) as launcher:
        launcher.send_signal(signal.SIGINT)
        wait_until((tmp_path / "interrupted").exists, what="Ctrl-C in rank 0")
        (tmp_path / "enough").touch()
        wait_until((tmp_path / "deaf").exists, what="the end of the conversation")
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=60)
    assert (tmp_path / "interrupted").read_text() == "1"
    assert outcome(tmp_path)["exit_code"] == 130
    assert outcome(tmp_path)["ends"] == {"0": -15, "1": -15}


def test_a_killed_launcher_leaves_no_rank(tmp_path: Path) -> None:
    halted = "os.kill(os.getpid(), signal.SIGSTOP)"
    with supervised(tmp_path, COUNT_TERMS + "while True: time.sleep(1)", halted) as launcher:
        launcher.kill()
        launcher.wait(timeout=60)
        wait_until(lambda: nobody_left(tmp_path), deadline_s=20, what="the end of the ranks")


def test_ctrl_z_halts_ranks_and_launcher_together(tmp_path: Path) -> None:
    def states() -> set[str]:
        table = process_table()
        pids = [launcher.pid, pid_in(tmp_path, "pid0"), pid_in(tmp_path, "pid1")]
        return {table[pid][1] for pid in pids}

    code = "while not os.path.exists('go'): time.sleep(0.01)"
    with supervised(tmp_path, code, code) as launcher:
        launcher.send_signal(signal.SIGTSTP)
        wait_until(lambda: states() == {"T"}, what="everybody to halt")
        launcher.send_signal(signal.SIGCONT)
        wait_until(lambda: "T" not in states(), what="everybody to go on")
        (tmp_path / "go").touch()
        launcher.communicate(timeout=60)
    assert outcome(tmp_path)["exit_code"] == 0


def test_an_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, of whose ranks each has inherited that."""
    code = "while not os.path.exists('go'): time.sleep(0.01)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervised(tmp_path, code) as launcher:
            launcher.send_signal(signal.SIGHUP)
            time.sleep(0.3)  # three looks of the launcher
            (tmp_path / "go").touch()
            launcher.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert outcome(tmp_path)["exit_code"] == 0


def test_a_launcher_that_inherits_no_interest_in_children_has_one(tmp_path: Path) -> None:
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    done = run(["-c", ignore, *words("sys.exit(65)")], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path)["ends"] == {"0": 65}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_between_the_starts_of_two_ranks_leaves_none(tmp_path: Path, name: str) -> None:
    # a rank left behind would hold the pipes open, and `run` would get to its deadline
    done = run(words(SLEEP, SLEEP, signal_at_start=name), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = outcome(tmp_path)
    assert found["stopped_by"] == name and len(found["ends"]) == 2
    assert all(exit_code < 0 for exit_code in found["ends"].values())
    assert found["children"] == "none"


def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    done = run(words(SLEEP, python="/nowhere/python"), cwd=tmp_path)
    assert "HardwareError: cannot start rank 0: " in done.stderr and "/nowhere" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
def test_a_rank_stays_on_its_cores_from_the_start(tmp_path: Path) -> None:
    (cpu, *_) = sorted(os.sched_getaffinity(0))
    done = run(words("print(os.sched_getaffinity(0))", cpus=[cpu]), cwd=tmp_path)
    assert done.stdout == f"{{{cpu}}}\n"
