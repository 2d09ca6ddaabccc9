"""Real ranks for tests: processes that meet in a private file and end at a deadline.

    def job(context: ParallelContext, x: int) -> int:  # a module-level function of a test module
        return int(context.tp.all_reduce(torch.tensor([x])))

    assert run_layout(job, 3, tp=2) == [6, 6]                  # one result a rank, in rank order
    errors = run_layout(failing_job, tp=2, expect_error=True)  # every rank must raise

Each run has fresh processes, so nothing that a job does (environment, hooks, groups, os._exit, a
kill) reaches the next one. They are forked from a server that has imported torch once, which makes
a run cost some 0.3 s; where forking is not safe they are spawned. Nobody listens on a port.

A rank that raises reports and goes at once, as in real life; a rank that is done waits for the
others, so that none of them loses a peer by mere timing. What a job takes and returns is pickled,
tensors by value. Who is not done by the deadline is asked where it hangs, and killed by pid.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

DEBUG = "TORCH_DISTRIBUTED_DEBUG"
TRANSPORT = "LLAMA_TRANSPORT"
DEADLINE_S = 60.0
GRACE_S = 20.0
"""What is left for the other ranks once one has failed: they should notice within seconds."""
PRELOADED = (
    "torch",
    "numpy",
    "pytest",
    "hypothesis",
    "llama.parallel.context",
    "tests.helpers.ranks",
)


class RanksFailed(AssertionError):
    """Some rank raised, died, hung, or did not raise when it had to."""


class RankDied(Exception):
    """Stands for the error of a rank that ended without a word."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


@dataclass(frozen=True)
class RankInfo:
    """What a job without a context is told. Ranks of one run meet in `init_file`."""

    rank: int
    world_size: int
    init_file: str

    def init_process_group(self, *, timeout_s: float = DEADLINE_S) -> None:
        """Make torch's default process group, over gloo, as a user's program would."""
        import torch.distributed as dist

        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.init_file}",
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout_s),
        )


@dataclass(frozen=True)
class Report:
    """How a rank's job ended: a value, or an error and its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def run_layout(
    function: Callable[..., Any],
    *args: Any,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    timeout_s: float = DEADLINE_S,
    deadline_s: float = DEADLINE_S,
    transport: str | None = None,
    expect_error: bool = False,
) -> list[Any]:
    """`function(context, *args)` on tp · pp · dp ranks; its results, or its errors, in rank order.

    The context comes from `initialize`, over a default process group that is there already;
    `timeout_s` bounds one collective, `transport` is the ranks' LLAMA_TRANSPORT.
    """
    return run_ranks(
        _with_context,
        tp * pp * dp,
        *(function, args, tp, pp, timeout_s),
        deadline_s=deadline_s,
        transport=transport,
        expect_error=expect_error,
    )


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    deadline_s: float = DEADLINE_S,
    transport: str | None = None,
    expect_error: bool = False,
) -> list[Any]:
    """`function(RankInfo, *args)` on `world_size` ranks; its results, or its errors, in rank order.

    Raises RanksFailed with the traceback of every rank that failed, the first one first. With
    `expect_error` every rank must raise, and that is returned; RankDied for a rank that died.
    `transport` None is the tests' own LLAMA_TRANSPORT.
    """
    environ = {DEBUG: os.environ.get(DEBUG, "OFF")}
    environ[TRANSPORT] = transport or os.environ.get(TRANSPORT, "")
    with TemporaryDirectory(prefix="ranks-") as folder:
        run = _Run(folder)
        try:
            run.start(function, world_size, args, environ)
            reports = run.collect(time.monotonic() + deadline_s)
        finally:
            run.kill()
    if not expect_error:
        return [report.value for report in _all_well(reports)]
    quiet = [rank for rank, report in sorted(reports.items()) if report.error is None]
    if quiet:
        raise RanksFailed(f"ranks {quiet} raised nothing\n{_traces(reports)}")
    return [reports[rank].error for rank in range(world_size)]


class _Run:
    """The processes of one run, and the pipe to each."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def start(
        self,
        function: Callable[..., Any],
        world_size: int,
        args: tuple[Any, ...],
        environ: dict[str, str],
    ) -> None:
        for rank in range(world_size):
            info = RankInfo(rank, world_size, str(self._folder / "rendezvous"))
            job = pickle.dumps((function, info, args))
            ours, theirs = _processes().Pipe()
            process = _processes().Process(
                target=_rank_main,
                args=(theirs, job, self._stack_file(rank), environ),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def collect(self, end: float) -> dict[int, Report]:
        """Every rank's report, in the order in which they came. Raises RanksFailed at `end`."""
        reports: dict[int, Report] = {}
        pending = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        while pending:
            ready = wait(list(pending), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                late = sorted(pending.values())
                raise RanksFailed(
                    f"ranks {late} are not done in time\n{_traces(reports)}{self._stacks(late)}"
                )
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = pending.pop(pipe)
                reports[rank] = self._read(rank)
                if reports[rank].error is not None:
                    end = min(end, time.monotonic() + GRACE_S)
        self._release(reports, end)
        return reports

    def _read(self, rank: int) -> Report:
        process, pipe = self._ranks[rank]
        try:
            report = pickle.loads(pipe.recv_bytes())
        except EOFError:
            process.join()
            died = RankDied(process.exitcode)
            return Report(error=died, trace=f"rank {rank} died: {died}")
        assert isinstance(report, Report)
        return report

    def _release(self, reports: dict[int, Report], end: float) -> None:
        """Let the ranks go that are done; leaving must work as well."""
        for rank, (_, pipe) in enumerate(self._ranks):
            if reports[rank].error is None:
                with suppress(BrokenPipeError):
                    pipe.send_bytes(b"go")
        for rank, (process, _) in enumerate(self._ranks):
            process.join(max(0.0, end - time.monotonic()))
            if reports[rank].error is None and process.exitcode != 0:
                how = f"ended with exit code {process.exitcode}" if process.exitcode else "hung"
                raise RanksFailed(f"rank {rank} returned, but {how} when it left")

    def kill(self) -> None:
        """End what is left, by pid."""
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            process.close()
            pipe.close()

    def _stack_file(self, rank: int) -> str:
        return str(self._folder / f"stack-{rank}")

    def _stacks(self, ranks: Sequence[int]) -> str:
        """Where the processes that hang are; those that are stopped cannot say."""
        for rank in ranks:
            process, _ = self._ranks[rank]
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        files = [Path(self._stack_file(rank)) for rank in ranks]
        texts = [file.read_text() if file.exists() else "its start" for file in files]
        return "".join(f"--- rank {r} hangs at\n{t}\n" for r, t in zip(ranks, texts, strict=True))


@cache
def _processes() -> ForkServerContext | SpawnContext:
    if sys.platform != "linux":
        return get_context("spawn")  # macOS frameworks do not survive a fork
    processes = get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOADED))
    return processes


def _rank_main(pipe: Connection, job: bytes, stack_file: str, environ: dict[str, str]) -> None:
    """A rank's life: run the job, report, and when all went well wait to be let go."""
    os.environ.update(environ)  # a fork server has the environment, and torch, of its own start
    if "torch.distributed" in sys.modules:
        sys.modules["torch.distributed"].set_debug_level_from_env()
    with open(stack_file, "w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        try:
            function, info, args = pickle.loads(job)
            report = Report(value=function(info, *args))
            data = pickle.dumps(report)
        except BaseException as error:
            report = Report(error=error, trace=traceback.format_exc())
            data = _pickled_error(report)
        pipe.send_bytes(data)
        if report.error is None:
            with suppress(EOFError):
                pipe.recv_bytes()


def _pickled_error(report: Report) -> bytes:
    """An error that cannot be pickled, or not brought back, travels as its text."""
    try:
        data = pickle.dumps(report)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(Report(error=RuntimeError(repr(report.error)), trace=report.trace))
    return data


def _with_context(
    info: RankInfo,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    tp: int,
    pp: int,
    timeout_s: float,
) -> Any:
    from llama.config import ParallelConfig
    from llama.parallel.context import initialize

    info.init_process_group(timeout_s=timeout_s)
    context = initialize(ParallelConfig(tp_size=tp, pp_size=pp, timeout_s=timeout_s))
    return function(context, *args)


def _all_well(reports: dict[int, Report]) -> list[Report]:
    if any(report.error is not None for report in reports.values()):
        raise RanksFailed(_traces(reports))
    return [reports[rank] for rank in range(len(reports))]


def _traces(reports: dict[int, Report]) -> str:
    failed = {rank: report for rank, report in reports.items() if report.error is not None}
    return "".join(f"--- rank {rank} failed\n{report.trace}\n" for rank, report in failed.items())
