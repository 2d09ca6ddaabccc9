"""The probe: what it finds here, and what it makes of a system that cannot tell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import hardware
from tests.helpers.programs import run


def test_probe_describes_this_machine() -> None:
    machine = hardware.probe()
    assert machine.host == socket.gethostname()
    assert 1 <= machine.n_cpus <= (os.cpu_count() or 1)
    assert machine.n_gpus == torch.cuda.device_count()
    assert machine.loopback in {name for _, name in socket.if_nameindex()}


def test_probe_does_not_open_a_gpu() -> None:
    code = "import launch.hardware as h, torch; h.probe(); print(torch.cuda.is_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 9}, raising=False)
    assert hardware.usable_cpus() == 3


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1), ("9900000 100000\n", 8)],
)
def test_a_container_may_have_the_time_of_fewer_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert hardware.usable_cpus(tmp_path / "cpu.max") == expected


@pytest.mark.parametrize(("count", "expected"), [(12, 12), (None, 1)])
def test_cpus_where_affinity_is_unknown(
    monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert hardware.usable_cpus() == expected


@pytest.mark.parametrize(
    ("names", "expected"), [(["lo", "eth0"], "lo"), (["en0", "lo0"], "lo0"), (["eth0"], None)]
)
def test_loopback_has_another_name_on_macos(
    monkeypatch: pytest.MonkeyPatch, names: list[str], expected: str | None
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(names)))
    assert hardware.loopback_interface() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("level", "is_told"), [(None, False), ("WARNING", True)])
def test_torch_gives_no_warnings_of_its_own_unless_asked(level: str | None, is_told: bool) -> None:
    """Those of a store that died are pages long; torch reads the level when it is loaded."""
    code = """
from datetime import timedelta
from launch import spawn
spawn.probe()
from torch.distributed import TCPStore
try:
    TCPStore("127.0.0.1", 1, is_master=False, timeout=timedelta(seconds=0.2))
except RuntimeError:
    print("no store")
"""
    done = run(["-c", code], env={"TORCH_CPP_LOG_LEVEL": level})
    assert done.stdout == "no store\n", done.stderr
    assert ("[W" in done.stderr) == is_told, done.stderr
