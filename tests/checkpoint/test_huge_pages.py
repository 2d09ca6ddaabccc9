"""The kernel's own record says which memory was asked to be in huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from llama.checkpoint.loading.huge_pages import ask_for_huge_pages

HUGE = 2**21
SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def flags_at(address: int) -> set[str]:
    """The VmFlags of the mapping that `address` is in."""
    is_here = False
    for line in SMAPS.read_text().splitlines():
        if found := MAPPING.match(line):
            is_here = int(found[1], 16) <= address < int(found[2], 16)
        elif is_here and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"{address:x} is not mapped")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not SMAPS.exists(),
    reason="this kernel has no huge pages to ask for",
)
def test_the_whole_huge_pages_of_a_tensor_are_asked_for() -> None:
    tensor = torch.empty(40 * HUGE, dtype=torch.uint8)
    first = -(-tensor.data_ptr() // HUGE) * HUGE
    last = (tensor.data_ptr() + tensor.nbytes) // HUGE * HUGE - 1
    ask_for_huge_pages(tensor)
    assert "hg" in flags_at(first) & flags_at(last)


def test_small_tensors_and_other_devices_are_left_alone() -> None:
    ask_for_huge_pages(torch.empty(10))
    ask_for_huge_pages(torch.empty(40 * HUGE, dtype=torch.uint8, device="meta"))
