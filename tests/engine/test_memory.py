"""How many blocks fit, and what counts as free."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama.config import EngineConfig
from llama.engine import memory
from llama.engine.memory import agree_num_blocks, free_bytes, ranks_on_device
from llama.errors import OutOfMemoryError
from llama.log import get_logger
from llama.parallel.context import ParallelContext, single
from tests.helpers.ranks import run_layout

CPU = torch.device("cpu")
GIB = 1024**3
CONFIG = EngineConfig(max_seq_len=64, block_size=16, max_batch_size=4, memory_fraction=0.5)
"""4 blocks a sequence, 16 in all."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux with 8 GiB available and no container, described by files in this folder."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text(
        f"MemTotal:       {16 * GIB // 1024} kB\nMemFree:  7 kB\n"
        f"MemAvailable:   {8 * GIB // 1024} kB\nHugePages_Total:       0\n"
    )
    return tmp_path


def limit(machine: Path, *, most: str, used: int, inactive_file: int | None = None) -> None:
    (machine / "memory.max").write_text(f"{most}\n")
    (machine / "memory.current").write_text(f"{used}\n")
    if inactive_file is not None:
        (machine / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\n")


def test_available_memory_is_shared_by_the_ranks_of_a_host(machine: Path) -> None:
    assert free_bytes(CPU, local_ranks=1) == 8 * GIB
    assert free_bytes(CPU, local_ranks=3) == 8 * GIB // 3


@pytest.mark.parametrize(
    ("most", "used", "inactive_file", "expected"),
    [
        ("max", 1 * GIB, 0, 8 * GIB),
        (str(64 * GIB), 1 * GIB, 0, 8 * GIB),
        (str(4 * GIB), 1 * GIB, None, 3 * GIB),
        (str(4 * GIB), 3 * GIB, 2 * GIB, 3 * GIB),
        (str(4 * GIB), 4 * GIB, 0, 0),
        (str(4 * GIB), 5 * GIB, 0, 0),
    ],
)
def test_a_container_limit_counts(
    machine: Path, most: str, used: int, inactive_file: int | None, expected: int
) -> None:
    """What files take up in its page cache can be had, and a full one has nothing left."""
    limit(machine, most=most, used=used, inactive_file=inactive_file)
    assert free_bytes(CPU, local_ranks=1) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes(CPU, local_ranks=1) <= total


def test_elsewhere_half_of_the_machine_is_taken_for_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory, "_MEMINFO", Path("/nowhere"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_bytes(CPU, local_ranks=2) == total // 4


# Agreement --------------------------------------------------------------------------------------


def blocks(
    context: ParallelContext,
    free: list[int],
    sizes: list[int],
    activations: int = 0,
    window: int | None = None,
) -> tuple[int, list[str]]:
    """What rank i agrees to with free[i] bytes and blocks of sizes[i] bytes, and what it logs."""
    shares: list[int] = []

    def fake_free_bytes(_: torch.device, *, local_ranks: int) -> int:
        shares.append(local_ranks)
        return free[context.rank]

    logged = _Lines()
    get_logger().addHandler(logged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", fake_free_bytes)
        num_blocks = agree_num_blocks(
            CONFIG,
            ring_blocks=CONFIG.ring_blocks(window),
            block_bytes=sizes[context.rank],
            activation_bytes=activations,
            context=context,
        )
    get_logger().removeHandler(logged)
    assert shares == [context.layout.world_size]
    return num_blocks, logged.lines


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.lines.append(record.getMessage())


def test_no_more_than_a_full_batch_needs() -> None:
    assert blocks(single(), [10**9], [100]) == (16, [])


def test_a_window_bounds_the_blocks_of_a_sequence() -> None:
    """Three blocks hold a window of 40, so 12 serve 4 sequences, and three are enough for one."""
    assert blocks(single(), [10**9], [100], window=40) == (12, [])
    assert blocks(single(), [10**9], [100], window=1000) == (16, [])
    assert blocks(single(), [600], [100], window=40)[0] == 3
    with pytest.raises(OutOfMemoryError, match=r"needs 3 .*lower max_seq_len to 32 or less"):
        blocks(single(), [599], [100], window=40)


def test_the_poorest_rank_decides_and_rank_0_says_so() -> None:
    """1400 bytes, of which half may be taken, hold 7 blocks of 100; half of 4000 hold 10 of 200."""
    ranks = run_layout(blocks, [10**9, 1400, 4000, 10**9], [100, 100, 200, 200], tp=2, pp=2)
    assert [num_blocks for num_blocks, _ in ranks] == [7] * 4
    (line,) = ranks[0][1]
    assert "holds 7 blocks of 16 tokens, not the 16 that a full batch could need" in line
    assert [lines for _, lines in ranks[1:]] == [[], [], []]


def test_the_activations_of_a_step_are_kept_free() -> None:
    """Of 1400 bytes 400 are spoken for, and half of the rest holds 5 blocks of 100."""
    assert blocks(single(), [1400], [100], 400)[0] == 5
    with pytest.raises(OutOfMemoryError, match="room for 0 KV blocks"):
        blocks(single(), [1400], [100], 1500)


class _Gpu:
    """What torch would tell of a GPU that two of three ranks see."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid


def sharing_job(context: ParallelContext) -> tuple[int, int, int]:
    """How many ranks have this rank's CPU, its GPU when ranks 0 and 2 share one, and its share."""
    gpu = _Gpu("one" if context.rank == 1 else "other")
    on_gpu = replace(context, device=torch.device("cuda", 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * GIB, 8 * GIB))
        sharers = ranks_on_device(on_gpu)
        free = free_bytes(on_gpu.device, local_ranks=sharers)
    return ranks_on_device(context), sharers, free


def test_ranks_that_share_a_gpu_share_its_memory() -> None:
    found = run_layout(sharing_job, tp=3)
    assert found == [(3, 2, 3 * GIB), (3, 1, 6 * GIB), (3, 2, 3 * GIB)]


def test_a_process_by_itself_shares_with_nobody() -> None:
    assert ranks_on_device(single()) == 1


def test_too_little_for_one_sequence_fails_on_every_rank() -> None:
    free = [10**12, 3 * GIB]
    for error in run_layout(blocks, free, [GIB // 2] * 2, pp=2, expect_error=True):
        assert isinstance(error, OutOfMemoryError)
        assert str(error) == (
            "rank 1 has room for 3 KV blocks (1.5 GiB) but one sequence of max_seq_len 64 needs "
            "4 (2 GiB); lower max_seq_len to 48 or less, or spread the model over more ranks"
        )


def test_no_room_at_all() -> None:
    with pytest.raises(OutOfMemoryError, match=r"room for 0 KV blocks .*\(2 GiB\); spread the"):
        blocks(single(), [GIB // 4], [GIB // 2])


def test_num_blocks_that_were_asked_for() -> None:
    few = EngineConfig(max_seq_len=64, block_size=16, num_blocks=3)
    assert (
        agree_num_blocks(few, ring_blocks=4, block_bytes=1, activation_bytes=0, context=single())
        == 3
    )
    many = EngineConfig(max_seq_len=64, block_size=16, num_blocks=1000)
    assert (
        agree_num_blocks(many, ring_blocks=4, block_bytes=1, activation_bytes=0, context=single())
        == 1000
    )
