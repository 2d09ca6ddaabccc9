"""Errors that nobody catches, and ranks that fail while others wait for them, in real programs.

Everybody ends, within a deadline far below the timeouts of a collective (300 s) and of the wait for
a plan (a day), with the right status and the cause on stderr.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llama.errors import LlamaError
from tests.helpers.programs import is_alive, run, started
from tests.helpers.refusals import write_files

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
OPTIMISED = {"PYTHONOPTIMIZE": "1"}
USUAL = {"TORCH_DISTRIBUTED_DEBUG": None}
"""As users run it: under DETAIL torch reports errors of its own on stderr."""
DEADLINE_S = 100.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


# Errors that nobody catches ---------------------------------------------------------------------


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def run_by_hand(
    words: list[str], n_ranks: int, *, env: Mapping[str, str]
) -> list[tuple[int, list[str]]]:
    """Status and stderr of ranks that nobody watches, and so nobody ends.

    Only lines that begin with the rank; no others may be a traceback. (torch's store client warns
    when the rank that hosts the store is gone.)
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    world = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                started(words, env={"RANK": str(r), "LOCAL_RANK": str(r), **USUAL, **world, **env})
            )
            for r in range(n_ranks)
        ]
        texts = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
    found = []
    for number, text in enumerate(texts):
        own: list[str] = []
        others: list[str] = []
        for line in text.splitlines():
            (own if line.startswith(f"[rank {number} {HOST}] ") else others).append(line)
        assert not any("Traceback" in line for line in others), text
        found.append((ranks[number].returncode, own))
    return found


def fail_by_hand(
    mode: str, files: Path, out: Path, *names: str, sizes: str = "tp=2", **env: str
) -> list[tuple[int, list[str]]]:
    axis, _, size = sizes.partition("=")
    words = ["-m", "tests.helpers.failing", mode, str(files), str(out), *names]
    return run_by_hand(words, 2, env={f"LLAMA_{axis.upper()}_SIZE": size, **env})


UNCAUGHT = [
    pytest.param(
        *("build", "world not divisible", "UsageError", "does not divide the world size 2"),
        marks=pytest.mark.nightly,
    ),
    pytest.param(
        *("build", "seed", "RankMismatchError", "seed: 7 on rank 0; 8 on rank 1"),
        marks=pytest.mark.nightly,
    ),
    ("call", "NaN temperature", "UsageError", "temperature must be a finite number, got nan"),
]


@pytest.mark.parametrize(("mode", "name", "kind", "message"), UNCAUGHT)
def test_an_uncaught_refusal_is_told_once_and_is_the_status_of_every_rank(
    files: Path, tmp_path: Path, mode: str, name: str, kind: str, message: str
) -> None:
    status = exit_codes()[kind]
    for rank, found in enumerate(fail_by_hand(mode, files, tmp_path, name, **OPTIMISED)):
        assert found[0] == status
        assert found[1][0].startswith(f"[rank {rank} {HOST}] {kind}: ")
        assert "\n".join(found[1]).count(message) == 1


def exit_codes() -> dict[str, int]:
    return {error.__name__: error.exit_code for error in LlamaError.__subclasses__()}


# One rank fails, the other waits ----------------------------------------------------------------

PEER_LOST = "PeerLostError: "


def without_trace(found: tuple[int, list[str]]) -> tuple[int, str]:
    """Status and the only line of a rank that ends with an error of this package."""
    (line,) = found[1]
    return found[0], line.partition("] ")[2]


def check_trace(rank: int, found: tuple[int, list[str]]) -> None:
    """The status of an unforeseen error; it is told once, with its traceback and the rank."""
    status, lines = found
    assert status == 70
    assert [line.partition("] ")[2] for line in lines if "Traceback" in line] == [
        "Traceback (most recent call last):"
    ]
    assert lines[-1] == f"[rank {rank} {HOST}] RuntimeError: the wheel fell off"


def test_a_file_that_only_one_rank_cannot_read(files: Path, tmp_path: Path) -> None:
    first, second = fail_by_hand("load", files, tmp_path)
    status, line = without_trace(second)
    assert status == 65
    assert line.startswith("CheckpointError: ") and "consolidated.01.pth is truncated" in line
    assert without_trace(first) == (
        65,
        f"CheckpointError: rank 1 ({HOST}) failed while opening the checkpoint: {line}",
    )


@pytest.mark.parametrize("sizes", ["tp=2", "pp=2"])
def test_an_exception_in_the_forward_of_one_rank(files: Path, tmp_path: Path, sizes: str) -> None:
    first, second = fail_by_hand("raise", files, tmp_path, sizes=sizes)
    check_trace(1, second)
    status, line = without_trace(first)
    assert status == 70 and line.startswith(PEER_LOST)
    assert f"first failure: rank 1 ({HOST}, pid " in line
    assert " in STEP (" in line and line.endswith("): RuntimeError: the wheel fell off")


@pytest.mark.nightly
def test_a_typed_error_in_the_forward_of_one_rank(files: Path, tmp_path: Path) -> None:
    first, second = fail_by_hand("typed", files, tmp_path, sizes="pp=2", **OPTIMISED)
    cause = "OutOfMemoryError: the cart is full; bring a larger one"
    assert without_trace(second) == (71, cause)
    status, line = without_trace(first)
    assert status == 71 and line.startswith(PEER_LOST) and line.endswith(cause)


def test_one_rank_is_killed(files: Path, tmp_path: Path) -> None:
    first, second = fail_by_hand("kill", files, tmp_path, sizes="pp=2")
    assert second == (-9, [])
    status, line = without_trace(first)
    assert status == 69 and line.startswith(PEER_LOST) and "with rank 1: a rank is gone" in line
    assert f"first failure: rank 1 ({HOST}, pid " in line and "the process died (killed?)" in line


def test_an_exception_in_the_scheduler(files: Path, tmp_path: Path) -> None:
    """The leader also hosts the store here, and leaves its peer the time to find the record."""
    first, second = fail_by_hand("leader", files, tmp_path, sizes="pp=2")
    check_trace(0, first)
    status, line = without_trace(second)
    assert status == 70 and line.startswith(PEER_LOST) and "with rank 0: a rank is gone" in line
    assert line.endswith("RuntimeError: the wheel fell off")


# The same under a launcher ----------------------------------------------------------------------

LAUNCH = ["-O", "-m", "launch", "--nproc", "2"]
TORCHRUN = ["-O", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OVERFULL = "OutOfMemoryError: the cart is full; bring a larger one"
FAILURES = [
    ("raise", 70, f"[rank 1 {HOST}] RuntimeError: the wheel fell off"),
    ("typed", 71, f"[rank 1 {HOST}] {OVERFULL}"),
    ("kill", 137, f"launch: rank 1 ({HOST}) was killed by SIGKILL"),
]


def launched(
    launcher: list[str], mode: str, files: Path, out: Path
) -> subprocess.CompletedProcess[str]:
    """A run of failing ranks, none of which is left."""
    words = [*launcher, "-m", "tests.helpers.failing", mode, str(files), str(out)]
    done = run(words, env={**USUAL, **OPTIMISED}, deadline_s=DEADLINE_S)
    pids = [int(path.read_text()) for path in out.glob("pid*")]
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)
    return done


@pytest.mark.nightly  # the scoreboard's short subset has two of them
@pytest.mark.parametrize(("mode", "status", "line"), FAILURES)
def test_the_launcher_ends_with_the_status_of_the_cause(
    files: Path, tmp_path: Path, mode: str, status: int, line: str
) -> None:
    done = launched(LAUNCH, mode, files, tmp_path)
    assert done.returncode == status
    assert done.stderr.count(line) == 1
    assert ("Traceback" in done.stderr) == (status == 70)


@pytest.mark.nightly
def test_plain_torchrun_ends_as_well(files: Path, tmp_path: Path) -> None:
    done = launched(TORCHRUN, "raise", files, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count(f"[rank 1 {HOST}] RuntimeError: the wheel fell off") == 1


@pytest.mark.parametrize(
    ("mode", "odd_rank"), [pytest.param("raise", 3, marks=pytest.mark.nightly), ("leader", 0)]
)
def test_a_program_that_catches_the_error_and_goes_on(
    files: Path, tmp_path: Path, mode: str, odd_rank: int
) -> None:
    """Nobody dies and nobody waits for a timeout: all get an error, and can build anew."""
    words = ["-m", "launch", "--tp", "2", "--pp", "2", "-m", "tests.helpers.failing", mode]
    done = run(
        [*words, str(files), str(tmp_path), "caught"],
        env={"ODD_RANK": str(odd_rank)}, deadline_s=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = reports(tmp_path)
    cause = "RuntimeError: the wheel fell off"
    for rank, report in enumerate(found):
        (error,) = report["error"]
        if rank == odd_rank:
            assert error == cause
        else:
            assert error.startswith(PEER_LOST) and error.endswith(cause)
            assert f"first failure: rank {odd_rank} ({HOST}" in error
        refusal = f"this engine is out of service after: {error}; build a new one"
        assert report["refused"] == [["LlamaError", refusal]] * 2
    assert len(found) == 4 and len({str(report["answer"]) for report in found}) == 1
