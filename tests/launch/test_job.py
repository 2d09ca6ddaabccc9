"""From request to job. Nothing is started here."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.hardware import Machine
from launch.job import plan, warnings
from launch.nodes import NodeRequest
from launch.request import LaunchRequest
from llama.errors import HardwareError, UsageError
from llama.parallel.device import DeviceFacts
from llama.parallel.layout import ParallelLayout

CPU = Machine(8, "lo", DeviceFacts("box"))
GPUS = Machine(8, "lo", DeviceFacts("box", cuda_count=4, cuda_problem="", has_nccl=True))
SCRIPT = LaunchRequest(program=("script.py", "--flag"))
TWO_NODES = NodeRequest(nnodes=2, node_rank=1, master_addr="hostA", master_port=4711)


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
    assert replace(SCRIPT, **changes).count_ranks(machine.n_gpus) == expected


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
    assert [place.device for place in job.places] == ["cuda:0", "cuda:1", "cuda:2"]
    assert job.backend == "nccl"


def test_more_ranks_than_gpus_are_expected_on_cpus() -> None:
    job = plan(replace(SCRIPT, nproc=6), GPUS)
    assert [place.device for place in job.places] == ["cpu"] * 6
    assert job.backend == "gloo" and "share GPU 0 of box" in job.reason


def test_a_device_can_be_asked_for() -> None:
    job = plan(replace(SCRIPT, nproc=2, device="cpu"), GPUS)
    assert [place.device for place in job.places] == ["cpu", "cpu"] and job.backend == "gloo"
    with pytest.raises(HardwareError, match="device 'cuda' cannot be used"):
        plan(replace(SCRIPT, device="cuda"), CPU)


def test_dry_run_line_for_one_of_several_machines(tmp_path: Path) -> None:
    request = replace(
        SCRIPT, nproc=2, nodes=TWO_NODES, log_dir=tmp_path, limits_s={"step_timeout_s": 7.5}
    )
    words = shlex.split(plan(request, CPU).as_torchrun)
    start = words.index("torchrun")
    assert {f"LLAMA_LOG_DIR={tmp_path}", "LLAMA_STEP_TIMEOUT_S=7.5"} <= set(words[:start])
    assert not any(word.startswith("GLOO_SOCKET_IFNAME=") for word in words)  # lo leads nowhere
    assert words[start:] == [
        "torchrun", "--nnodes=2", "--node-rank=1", "--master-addr=hostA", "--master-port=4711",
        "--nproc-per-node=2", f"--log-dir={tmp_path}", "--tee=3", "script.py", "--flag",
    ]  # fmt: skip


def test_sizes_are_of_the_whole_job() -> None:
    request = replace(SCRIPT, tp=2, pp=2, nodes=TWO_NODES)
    job = plan(request, CPU)
    assert (job.n_local, job.layout.world_size) == (2, 4)
    assert [place.node for place in job.places] == ["node 0", "node 0", "box", "box"]
    with pytest.raises(UsageError, match=r"3 ranks .* cannot be shared evenly by 2 nodes"):
        plan(replace(request, tp=3, pp=1), CPU)


def test_gpus_of_two_machines_are_not_the_same_gpus() -> None:
    job = plan(replace(SCRIPT, nodes=TWO_NODES), GPUS)
    assert job.backend == "nccl"
    assert [place.device for place in job.places[3:6]] == ["cuda:3", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits_s": {"load_timeout_s": 0}}, "load_timeout_s must be a number of seconds above 0"),
        ({"limits_s": {"heartbeat_timeout_s": -1}}, "heartbeat_timeout_s must be a number"),
        ({"shutdown_timeout_s": -1.0}, "--shutdown_timeout must be 0 or more"),
    ],
)
def test_limits_are_checked_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SCRIPT, **changes)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (DeviceFacts("box"), []),
        (DeviceFacts("box", cuda_count=1, cuda_problem="", has_driver=True), []),
        (
            DeviceFacts("box", has_driver=True),
            ["there is a GPU driver on box, but torch, which is built without GPUs, cannot use it"],
        ),
        (
            DeviceFacts("box", has_driver=True, gpu_build="ROCm 6.4"),
            ["there is a GPU driver on box, but torch, which is built for ROCm 6.4, cannot use it"],
        ),
        (DeviceFacts("box", xpu_count=2), ["2 Intel GPU(s) of box are not supported"]),
    ],
)
def test_gpus_that_will_not_be_used_are_warned_of(facts: DeviceFacts, expected: list[str]) -> None:
    machine = Machine(8, "lo", facts)
    found = warnings(plan(SCRIPT, machine), machine)
    assert len(found) == len(expected)
    for line, begin in zip(found, expected, strict=True):
        assert line.startswith(begin) and line.endswith("the ranks will compute on the CPU")
