"""What holds in every test process: one thread per rank, checked collectives, `gpu` needs a GPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before anything imports torch, and inherited by every rank that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

# Under nohup, and as a background job of a shell, these are ignored, and would be in every program
# that a test starts: a launcher leaves them so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_CHECKED = {Path(__file__).parent / name for name in ("parallel", "layers", "models")}
"""Here torch compares every collective over the ranks, which makes each dearer."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    is_checked = not _CHECKED.isdisjoint(item.path.parents)
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL" if is_checked else "OFF"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # not at the top: the tests of the torch-free modules start in milliseconds

    if torch.cuda.is_available():
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
