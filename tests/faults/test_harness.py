"""The scoreboard's harness: it can fail, and its report says what it saw."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.case import Case, CaseFailed, Kind, Outcome
from tests.faults.leftovers import lives
from tests.faults.report import p95, report, within_limits
from tests.faults.run import Result, all_cases, run_case
from tests.faults.scene import Scene

Run = Callable[[Scene], list[Outcome]]


def case_of(run: Run, kind: Kind = "") -> Case:
    return Case("P00", "what is done", "what must happen", run, kind)


def test_every_case_of_the_issue_is_there() -> None:
    wanted = [f"P{n:02d}" for n in range(1, 20)]
    wanted += ["L01", "L02", "L03", "L10", "L11"]
    assert [case.id for case in all_cases()] == sorted(wanted)


# What must fail a case --------------------------------------------------------------------------


def sleeping(scene: Scene) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    return subprocess.Popen(words, env={**os.environ, **scene.marks})


def leave_a_process(scene: Scene) -> list[Outcome]:
    scene.watch(sleeping(scene), scene.new_folder())
    return [Outcome("", "")]


def leave_a_file(scene: Scene) -> list[Outcome]:
    (scene.temporary / "forgotten").touch()
    return [Outcome("", "")]


def leave_shared_memory(scene: Scene) -> list[Outcome]:
    Path("/dev/shm", f"forgotten-{os.getpid()}").touch()
    return [Outcome("", "")]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (leave_a_process, "process"),
        (leave_a_file, "temporary file forgotten"),
        (leave_shared_memory, "/dev/shm/forgotten"),
    ],
)
def test_what_is_left_behind_fails_the_case(
    monkeypatch: pytest.MonkeyPatch, run: Run, what: str
) -> None:
    monkeypatch.setattr("tests.faults.leftovers.SETTLE_S", 0.3)
    try:
        result = run_case(case_of(run), repeat=1)
    finally:
        Path("/dev/shm", f"forgotten-{os.getpid()}").unlink(missing_ok=True)
    (error,) = result.errors
    assert error.startswith("left behind: ") and what in error


def test_a_stopped_process_lives_and_a_zombie_does_not(tmp_path: Path) -> None:
    process = sleeping(Scene(tmp_path))
    try:
        process.send_signal(signal.SIGSTOP)
        assert lives(process.pid)
    finally:
        process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(process.pid)
    process.wait()


def test_a_job_that_does_not_say_what_it_must_fails(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    words = [sys.executable, "-c", "print('something else')"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job = scene.watch(process, scene.new_folder())
    with pytest.raises(CaseFailed, match=r"waited for 'built'(?s:.*)\| something else"):
        job.wait_for("built")
    with pytest.raises(CaseFailed, match="no line shows the cause"):
        job.require("first failure", what="the cause")
    assert job.find("some.*else") is not None and job.wait_end() == 0


def test_survivors_that_stay_fail_the_case(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    job = scene.watch(sleeping(scene), scene.new_folder())
    try:
        with pytest.raises(CaseFailed, match=r"the survivors \(1 pids\) live"):
            job.wait_gone([job.process.pid], since=time.monotonic(), limit_s=0.1)
    finally:
        scene.close()
    assert not lives(job.process.pid)


# The report -------------------------------------------------------------------------------------


def result_of(kind: Kind, times: list[float], *errors: str) -> Result:
    case = case_of(leave_a_file, kind=kind)
    line = f"first failure: rank 1 ({socket.gethostname()}, pid 77)"
    outcomes = [Outcome("launcher 137; ranks 69, -", line, seconds) for seconds in times]
    return Result(case, len(times) + len(errors), outcomes, list(errors))


def test_p95_is_one_of_the_times() -> None:
    times = [float(n) for n in range(1, 21)]
    assert p95(times) == 19.0 and p95(times[:1]) == 1.0 and p95(times[:3]) == 3.0


def test_the_limits_differ_by_kind_of_fault() -> None:
    assert within_limits([result_of("killed", [5.0]), result_of("stopped", [8.0])])
    assert within_limits([result_of("", [60.0])])
    assert not within_limits([result_of("killed", [5.1])])
    assert not within_limits([result_of("stopped", [8.1])])


def test_the_report_has_a_row_a_case_and_what_was_printed() -> None:
    text = report([result_of("killed", [0.25, 0.75], "rank 0 stayed\n    | its output")])
    row = (
        "| P00 | what is done | what must happen | 2/3 | 0.50 / 0.75 s | launcher 137; ranks 69, -"
    )
    assert f"{row} |" in text
    assert "Detection of killed ranks: p95 0.75 s" in text and "0 of 1 cases passed" in text
    assert "first failure: rank 1 (host, pid 77)" in text and "FAILED: rank 0 stayed\n" in text
    assert socket.gethostname() not in text
