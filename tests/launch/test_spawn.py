"""From request to job, and from failures to one exit status. Nothing is started here."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from launch.agent import RankFailure
from launch.hardware import Machine
from launch.spawn import LaunchRequest, count_ranks, describe, first_cause, plan
from llama.errors import HardwareError, UsageError
from llama.parallel.device import DeviceFacts
from llama.parallel.layout import ParallelLayout

CPU = Machine(8, "lo", DeviceFacts("box"))
GPUS = Machine(8, "lo", DeviceFacts("box", cuda_count=4, cuda_problem="", has_nccl=True))
SCRIPT = LaunchRequest(program=("script.py", "--flag"))


@pytest.mark.parametrize(
    ("machine", "changes", "expected"),
    [
        (CPU, {}, 1),
        (GPUS, {}, 4),
        (GPUS, {"nproc": "auto"}, 4),
        (CPU, {"nproc": "auto"}, 1),
        (CPU, {"nproc": 3}, 3),
        (CPU, {"tp": 2, "pp": 3}, 6),
        (GPUS, {"pp": 2}, 2),
        (GPUS, {"nproc": "auto", "pp": 2}, 4),
        (CPU, {"nproc": 8, "tp": 2}, 8),
        (CPU, {"nproc": "auto", "pp": 2}, 2),
    ],
)
def test_number_of_ranks(machine: Machine, changes: dict[str, int], expected: int) -> None:
    assert count_ranks(replace(SCRIPT, **changes), machine) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nproc": 4}, ParallelLayout(4, 1, 1)),
        ({"nproc": 4, "pp": 2}, ParallelLayout(2, 2, 1)),
        ({"nproc": 4, "tp": 2}, ParallelLayout(2, 1, 2)),
        ({"tp": 2, "pp": 2}, ParallelLayout(2, 2, 1)),
    ],
)
def test_layout(changes: dict[str, int], expected: ParallelLayout) -> None:
    assert plan(replace(SCRIPT, **changes), CPU).layout == expected


@pytest.mark.parametrize(
    "changes",
    [{"nproc": 4, "tp": 3}, {"nproc": 2, "pp": 4}, {"nproc": 2, "tp": 2, "pp": 2}],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="does not divide the world size"):
        plan(replace(SCRIPT, **changes), CPU)


@pytest.mark.parametrize("name", ["nproc", "tp", "pp"])
def test_nothing_is_less_than_one(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} must be at least 1, got 0"):
        replace(SCRIPT, **{name: 0})


@pytest.mark.parametrize(("nproc", "threads"), [(1, "8"), (2, "4"), (3, "2"), (16, "1")])
def test_ranks_share_the_cores(nproc: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    job = plan(replace(SCRIPT, nproc=nproc), CPU)
    assert job.settings["OMP_NUM_THREADS"] == threads


def test_dry_run_line_is_a_shell_command() -> None:
    request = LaunchRequest(("-m", "llama.cli", "generate", "two words"), nproc=2, tp=2)
    words = shlex.split(plan(request, CPU).as_torchrun)
    assert "LLAMA_TP_SIZE=2" in words
    start = words.index("torchrun")
    assert words[start : start + 3] == ["torchrun", "--standalone", "--nproc-per-node=2"]
    assert words[start + 3 :] == ["-m", "llama.cli", "generate", "two words"]


def test_every_rank_is_expected_on_a_gpu_of_its_own() -> None:
    job = plan(replace(SCRIPT, nproc=3), GPUS)
    assert job.devices == ("cuda:0", "cuda:1", "cuda:2")
    assert job.backend == "nccl"


def test_more_ranks_than_gpus_are_expected_on_cpus() -> None:
    job = plan(replace(SCRIPT, nproc=6), GPUS)
    assert job.devices == ("cpu",) * 6
    assert job.backend == "gloo" and "share GPU 0 of box" in job.reason


def test_a_device_can_be_asked_for() -> None:
    job = plan(replace(SCRIPT, nproc=2, device="cpu"), GPUS)
    assert job.devices == ("cpu", "cpu") and job.backend == "gloo"
    with pytest.raises(HardwareError, match="device 'cuda' cannot be used"):
        plan(replace(SCRIPT, device="cuda"), CPU)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([(0, -15, 5), (1, 65, 5)], 1),  # ended with the job
        ([(0, 69, 5), (1, 65, 5)], 1),  # only lost its peer
        ([(0, 69, 4), (1, -15, 5)], 0),  # nothing but consequences: the first of them
        ([(2, 70, 6), (1, 70, 5), (3, 70, 5)], 1),  # the first in time, then by rank
        ([(0, -15, 5), (1, -9, 5)], 1),
    ],
)
def test_first_cause(failures: list[tuple[int, int, int]], expected: int) -> None:
    assert first_cause([RankFailure(*failure) for failure in failures]).rank == expected


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        (65, "rank 3 (box) exited with 65 (CheckpointError)"),
        (70, "rank 3 (box) exited with 70 (LlamaError)"),
        (1, "rank 3 (box) exited with 1"),
        (-11, "rank 3 (box) was killed by SIGSEGV"),
        (-40, "rank 3 (box) was killed by signal 40"),
        (-9, "rank 3 (box) was killed by SIGKILL; if nobody did that, it ran out of memory"),
    ],
)
def test_describe(exit_code: int, expected: str) -> None:
    assert describe(RankFailure(3, exit_code, 0), host="box") == expected
