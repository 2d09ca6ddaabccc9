"""The probe: what it finds here, and what it makes of a system that cannot tell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from launch import hardware


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
