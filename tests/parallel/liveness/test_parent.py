"""A rank does not outlive its launcher, and only its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.programs import is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl")

RANK = """
import os, sys, time
from llama.parallel.liveness.parent import end_with_launcher
end_with_launcher(os.environ)
print(os.getpid(), flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys, time
names = {"ours": {"LLAMA_LAUNCHER_PID": str(os.getpid())}, "another": {"LLAMA_LAUNCHER_PID": "1"}}
names |= {"torchrun": {"TORCHELASTIC_RUN_ID": "x"}, "nobody": {}}
env = {**os.environ, **names[sys.argv[2]]}
subprocess.run([sys.executable, "-c", sys.argv[1]], env=env)
"""


@pytest.mark.parametrize(
    ("launcher", "ends"),
    [("ours", True), ("torchrun", True), ("another", False), ("nobody", False)],
)
def test_the_launcher_is_killed(launcher: str, ends: bool) -> None:
    outside = ("LLAMA_LAUNCHER_PID", "TORCHELASTIC_RUN_ID")
    env = {name: text for name, text in os.environ.items() if name not in outside}
    words = [sys.executable, "-c", LAUNCHER, RANK, launcher]
    pid = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            process.kill()
            process.wait()
            end = time.monotonic() + (20 if ends else 0.5)
            while is_alive(pid) and time.monotonic() < end:
                time.sleep(0.02)
            assert is_alive(pid) is not ends
        finally:
            process.kill()
            if pid and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
