"""Ranks that run in different environments are told so before they make a group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from llama.config import ParallelConfig
from llama.errors import RankMismatchError
from llama.parallel.context import initialize
from llama.parallel.fingerprint import environment
from tests.helpers.ranks import RankInfo, run_ranks


def in_another_environment(info: RankInfo, odd_rank: int) -> None:
    info.init_process_group()
    dist.set_debug_level(dist.DebugLevel.OFF)
    if info.rank == odd_rank:
        torch.__version__ = "2.9.1"
        torch.use_deterministic_algorithms(True)
        dist.set_debug_level(dist.DebugLevel.DETAIL)
    initialize(ParallelConfig(tp_size=3, timeout_s=20))


def test_every_rank_gets_the_table_of_what_differs() -> None:
    """Two of these would have been a hang: under DETAIL a rank makes collectives of its own."""
    for error in run_ranks(in_another_environment, 3, 1, expect_error=True):
        assert type(error) is RankMismatchError
        header, *lines = str(error).splitlines()
        assert header == "give every rank the same; they disagree about"
        assert [line.partition(" (")[0] for line in lines] == [
            f"  torch: {torch.__version__} on ranks 0, 2; 2.9.1 on rank 1",
            "  TORCH_DISTRIBUTED_DEBUG: OFF on ranks 0, 2; DETAIL on rank 1",
            "  deterministic algorithms: False on ranks 0, 2; True on rank 1",
        ]


def test_what_may_differ_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RANK", "3")
    assert environment() == before
    assert before["torch"] == torch.__version__ and before["byte order"] in ("little", "big")
