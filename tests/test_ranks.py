"""The helper under every multi-rank test: it reports what ranks do, and cleans up after them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llama.errors import CheckpointError, PeerLostError
from llama.parallel.context import ParallelContext
from tests.helpers.programs import is_alive
from tests.helpers.ranks import RankDied, RankInfo, RanksFailed, run_layout, run_ranks


def place(context: ParallelContext, offset: int) -> tuple[int, int, int, int]:
    at = context.coordinates
    return context.rank + offset, at.dp_rank, at.pp_rank, at.tp_rank


@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_results_come_back_in_rank_order(tp: int, pp: int, dp: int) -> None:
    found = run_layout(place, 100, tp=tp, pp=pp, dp=dp)
    expected = [(d, p, t) for d in range(dp) for p in range(pp) for t in range(tp)]
    assert found == [(100 + rank, *at) for rank, at in enumerate(expected)]


def double(info: RankInfo, x: torch.Tensor) -> torch.Tensor:
    return x * 2 + info.rank


def test_tensors_travel_by_value() -> None:
    found = run_ranks(double, 2, torch.tensor([1.0, 2.0]))
    assert [x.tolist() for x in found] == [[2.0, 4.0], [3.0, 5.0]]


def fail_on_rank_one(info: RankInfo) -> None:
    info.init_process_group()
    if info.rank == 1:
        raise CheckpointError("shard 1 is broken")
    dist.all_reduce(torch.zeros(1))


def test_every_failure_is_shown_the_first_one_first() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(fail_on_rank_one, 2)
    text = str(caught.value)
    assert text.index("CheckpointError: shard 1 is broken") < text.index("rank 0 failed")
    assert "in fail_on_rank_one" in text


def raise_own(info: RankInfo) -> None:
    raise CheckpointError(f"file {info.rank}")


def test_expected_errors_come_back_as_what_they_are() -> None:
    errors = run_ranks(raise_own, 2, expect_error=True)
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert [str(error) for error in errors] == ["file 0", "file 1"]


def raise_on_rank_one(info: RankInfo) -> None:
    if info.rank == 1:
        raise CheckpointError("alone")


def test_an_expected_error_that_does_not_come_is_a_failure() -> None:
    with pytest.raises(RanksFailed, match=r"ranks \[0\] raised nothing"):
        run_ranks(raise_on_rank_one, 2, expect_error=True)


def die(info: RankInfo) -> None:
    if info.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise PeerLostError("gone")


def test_a_killed_rank_counts_as_an_error_with_its_exit_code() -> None:
    peer, died = run_ranks(die, 2, expect_error=True)
    assert isinstance(peer, PeerLostError)
    assert isinstance(died, RankDied)
    assert died.exit_code == -signal.SIGKILL


class Unpicklable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def raise_unpicklable(info: RankInfo) -> None:
    raise Unpicklable(1, 2)


def return_unpicklable(info: RankInfo) -> object:
    return lambda: None


def test_what_cannot_be_pickled_is_reported_all_the_same() -> None:
    (error,) = run_ranks(raise_unpicklable, 1, expect_error=True)
    assert "1 and 2" in str(error)
    with pytest.raises(RanksFailed, match="pickle"):
        run_ranks(return_unpicklable, 1)


def hang_on_rank_one(info: RankInfo, folder: str) -> None:
    (Path(folder) / str(info.rank)).write_text(str(os.getpid()))
    if info.rank == 1:
        time.sleep(600)


def test_a_hanging_rank_is_located_and_killed(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(hang_on_rank_one, 2, str(tmp_path), deadline_s=3)
    assert "ranks [1] are not done" in str(caught.value)
    assert "hang_on_rank_one" in str(caught.value)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert not any(is_alive(pid) for pid in pids)


def crash_on_leaving(info: RankInfo) -> None:
    from multiprocessing.util import Finalize

    Finalize(None, os._exit, args=(9,), exitpriority=100)


def test_a_rank_that_returns_but_cannot_leave_is_a_failure() -> None:
    with pytest.raises(RanksFailed, match="rank 0 returned, but ended with exit code 9"):
        run_ranks(crash_on_leaving, 1)


def spoil(info: RankInfo) -> None:
    os.environ["SPOILED"] = "1"
    torch.set_default_dtype(torch.float64)


def look(info: RankInfo) -> tuple[bool, str]:
    return "SPOILED" in os.environ, str(torch.get_default_dtype())


def test_a_run_starts_afresh() -> None:
    run_ranks(spoil, 1)
    assert run_ranks(look, 1) == [(False, "torch.float32")]
