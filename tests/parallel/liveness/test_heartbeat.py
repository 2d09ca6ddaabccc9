"""Ranks that die, stop, leave or hang while others wait elsewhere: real processes, short limits.

The main threads of the others cannot notice; the heartbeat ends them, with the cause's status.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama.config import ParallelConfig
from llama.errors import CheckpointError, LlamaError
from llama.log import get_logger
from llama.parallel.context import ParallelContext, initialize
from llama.parallel.liveness.failure import publish_ended
from llama.parallel.liveness.postmortem import FILE_NAME
from llama.parallel.liveness.whereabouts import Phase
from llama.parallel.meeting.rendezvous import as_ranks_see
from tests.helpers.ranks import RankDied, RankInfo, run_ranks
from tests.parallel.liveness.test_failure import KILLED

LONG_S = 45.0
"""Longer than any test here may take: nobody comes to the end of such a wait."""


def connect(info: RankInfo, folder: Path | None = None, **limits: float) -> ParallelContext:
    if folder is not None:
        os.environ["LLAMA_LOG_DIR"] = str(folder)
    info.init_process_group()
    limits.setdefault("heartbeat_timeout_s", 20.0)
    config = ParallelConfig(tp_size=1, pp_size=info.world_size, **limits)
    context = initialize(config)
    context.world.barrier()
    return context


@contextmanager
def in_step(context: ParallelContext, waiting_for: str | None = None) -> Iterator[None]:
    with context.whereabouts.during(Phase.STEP, "generate"):
        context.whereabouts.at_step(41)
        context.whereabouts.waiting_for = waiting_for
        yield
        context.whereabouts.waiting_for = None


def wait_in_vain(context: ParallelContext, src: int) -> None:
    """For a rank that lives, and has no idea."""
    with in_step(context, f"pp receive with rank {src}"):
        context.pp.recv(torch.zeros(1), src)


def postmortem(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / FILE_NAME).read_text())
    assert isinstance(content, dict)
    return content


def exit_codes(errors: list[Any]) -> list[int | None]:
    """Of ranks that the heartbeat ended, and of those whose main thread was told first."""
    assert all(isinstance(error, (RankDied, LlamaError)) for error in errors), errors
    return [error.exit_code for error in errors]


def die_in_a_chain(info: RankInfo, folder: Path) -> None:
    context = connect(info, folder)
    if info.rank == 0:
        wait_in_vain(context, src=2)
    if info.rank == 1:
        with in_step(context):
            time.sleep(0.8)  # until a beat has told where
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LONG_S)


def test_a_rank_is_killed_that_nobody_waits_for(tmp_path: Path) -> None:
    """Rank 0 waits for rank 2, which is between two calls of its program."""
    errors = run_ranks(die_in_a_chain, 3, tmp_path, expect_error=True)
    assert exit_codes(errors) == [69, -signal.SIGKILL, 69]
    found = postmortem(tmp_path)
    assert (found["first_failure"]["rank"], found["first_failure"]["step"]) == (1, 41)
    assert "died" in found["first_failure"]["error"]


def leave_early(info: RankInfo, folder: Path) -> None:
    context = connect(info, folder)
    if info.rank == 0:
        wait_in_vain(context, src=2)
    if info.rank == 1:
        context.close()
        os._exit(0)
    time.sleep(LONG_S)


def test_a_rank_ends_well_while_others_are_in_a_call(tmp_path: Path) -> None:
    errors = run_ranks(leave_early, 3, tmp_path, expect_error=True)
    assert exit_codes(errors) == [69, 0, 69]
    found = postmortem(tmp_path)["first_failure"]
    assert found["rank"] == 1 and "while rank 0 was in STEP (generate, step 41)" in found["error"]


def compute_for_ever(info: RankInfo, folder: Path) -> None:
    context = connect(info, folder, step_timeout_s=1.0)
    if info.rank == 1:
        with in_step(context):
            time.sleep(LONG_S)
    with in_step(context, "pp receive with rank 1"):
        time.sleep(LONG_S)


def test_a_rank_that_computes_for_ever_says_so_itself(tmp_path: Path) -> None:
    errors = run_ranks(compute_for_ever, 2, tmp_path, expect_error=True)
    assert exit_codes(errors) == [75, 75]
    found = postmortem(tmp_path)["first_failure"]
    assert found["rank"] == 1 and "computing for 1.0 s without" in found["error"]


def all_wait(info: RankInfo, folder: Path) -> None:
    context = connect(info, folder, step_timeout_s=1.0)
    with in_step(context, f"pp receive with rank {1 - info.rank}"):
        time.sleep(LONG_S)


@pytest.mark.slow
def test_all_wait_for_one_another(tmp_path: Path) -> None:
    errors = run_ranks(all_wait, 2, tmp_path, expect_error=True)
    assert exit_codes(errors) == [75, 75]
    error = postmortem(tmp_path)["first_failure"]["error"]
    for rank in (0, 1):
        assert f"waits for pp receive with rank {rank}" in error


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def pause_oneself(seconds: float) -> None:
    """As an operator might: everything stands still, and goes on."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def pause(info: RankInfo, paused_rank: int) -> list[str]:
    context = connect(info)
    warnings = Warnings()
    get_logger().addHandler(warnings)
    if info.rank == paused_rank:
        pause_oneself(2.6)
    context.world.barrier()
    time.sleep(1.2)  # two beats
    assert context.world.all_gather(torch.tensor([info.rank]), dim=0).tolist() == [0, 1, 2]
    return warnings.lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paused", "watcher"), [(1, 0), pytest.param(0, 1, marks=pytest.mark.nightly)]
)
def test_a_pause_is_survived_with_one_warning(paused: int, watcher: int) -> None:
    told = run_ranks(pause, 3, paused)
    (line,) = told[watcher]
    assert f"rank {paused} (" in line and line.endswith("; it is back")
    assert sum(map(len, told)) == 1


def stop_for_long(info: RankInfo, folder: Path) -> None:
    context = connect(info, folder, heartbeat_timeout_s=2.0)
    if info.rank == 0:
        wait_in_vain(context, src=2)
    if info.rank == 1:
        pause_oneself(7.0)
    time.sleep(LONG_S)


@pytest.mark.slow
def test_a_stopped_rank_is_given_up_and_hears_of_it_when_it_is_back(tmp_path: Path) -> None:
    errors = run_ranks(stop_for_long, 3, tmp_path, expect_error=True)
    assert exit_codes(errors) == [75, 75, 75]
    found = postmortem(tmp_path)["first_failure"]
    assert found["rank"] == 1 and found["error"].startswith("silent for ")
    assert "its process is stopped" in found["error"]


def be_told(info: RankInfo) -> None:
    """The launcher knows how a rank ended; nobody else could."""
    context = connect(info)
    if info.rank == 0:
        store: Any = context._vitals.record.store
        publish_ended(
            as_ranks_see(store._underlying_non_prefix_store), replace(KILLED, exit_code=71)
        )
    time.sleep(LONG_S)


def test_a_record_ends_every_rank_with_its_status() -> None:
    assert exit_codes(run_ranks(be_told, 2, expect_error=True)) == [71, 71]


def host_the_store(info: RankInfo, how: signal.Signals) -> None:
    """Rank 0 hosts it; the others are in a call, and wait for one another."""
    import torch.distributed as dist

    way = dist.FileStore(info.init_file, info.world_size)
    if info.rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        way.set("port", str(store.port))
    else:
        port = int(way.get("port"))
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.world_size)
    config = ParallelConfig(tp_size=1, pp_size=info.world_size, heartbeat_timeout_s=2.0)
    context = initialize(config)
    context.world.barrier()
    if info.rank == 0 and how is signal.SIGSTOP:
        pause_oneself(8.0)
    if info.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_in_vain(context, src=3 - info.rank)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGKILL, 69), pytest.param(signal.SIGSTOP, 75, marks=pytest.mark.nightly)],
)
def test_the_host_of_the_store_is_lost(how: signal.Signals, code: int) -> None:
    errors = run_ranks(host_the_store, 3, how, expect_error=True)
    assert exit_codes(errors) == [-signal.SIGKILL, code, code]


def catch_and_build_anew(info: RankInfo) -> list[str]:
    """One rank fails; all catch what they get, and meet again."""
    context = connect(info)
    try:
        if info.rank == 1:
            error = CheckpointError("the wheel fell off")
            context.fail(error)
            raise error
        wait_in_vain(context, src=1)
    except LlamaError as caught:
        told = f"{caught} [{caught.exit_code}]"
        context.fail(caught)
    time.sleep(4)  # longer than any heartbeat would wait before it ends a process
    again = initialize(ParallelConfig(tp_size=1, pp_size=2))
    total = again.world.all_reduce(torch.tensor([info.rank + 1])).item()
    beating = sorted(thread.name for thread in threading.enumerate())
    return [told, str(total), *beating]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_program_that_catches_the_error_may_build_anew() -> None:
    first, second = run_ranks(catch_and_build_anew, 2)
    assert "first failure: rank 1 (" in first[0] and first[0].endswith("the wheel fell off [65]")
    assert second[0] == "the wheel fell off [65]"
    assert first[1:] == second[1:] == ["3", "MainThread", "llama-beat", "llama-watch"]


def come_and_go(info: RankInfo) -> list[str]:
    """Contexts side by side, one that is closed, and a child that is no rank."""
    first = connect(info)
    second = initialize(ParallelConfig(tp_size=1, pp_size=2))
    first.close()
    pid = os.fork()
    if pid == 0:
        second._vitals.close()
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(1.2)  # until the others would have heard of it
    assert second.world.all_reduce(torch.tensor([1])).item() == 2
    second.close()
    return [thread.name for thread in threading.enumerate()]


def test_nothing_is_left_behind() -> None:
    assert run_ranks(come_and_go, 2) == [["MainThread"]] * 2


def without(info: RankInfo) -> list[str]:
    connect(info, heartbeat_timeout_s=0)
    return [thread.name for thread in threading.enumerate()]


def test_a_program_may_do_without() -> None:
    assert run_ranks(without, 2) == [["MainThread"]] * 2


def refuse(info: RankInfo) -> None:
    info.init_process_group()
    if info.rank == 1:
        initialize(ParallelConfig(device="cuda:77"))
    initialize()


def test_a_rank_that_fails_while_they_meet_tells_the_others() -> None:
    errors = run_ranks(refuse, 2, expect_error=True)
    assert all(code in (76, 78) for code in exit_codes(errors))
