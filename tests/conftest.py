"""What holds in every test process: one thread per rank, checked collectives, `gpu` needs a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch, and inherited by every rank that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

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
