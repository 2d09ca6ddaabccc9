"""torchrun's agent for one machine: starts the ranks, watches them, and ends them all together.

torch.distributed.elastic does the work. A command goes in, the end of every failed rank comes out;
models, layouts and consoles are not known here. For the main thread only: it sets signal handlers.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

LOOPBACK = "127.0.0.1"
STORE_TIMEOUT_S = 300
GRACE_S = 5
"""Time from SIGTERM to SIGKILL when the whole job is told to end."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class RankFailure:
    """How a rank ended. `exit_code` is minus the signal for a killed one; `time_s` is Unix time."""

    rank: int
    exit_code: int
    time_s: int


class JobStopped(Exception):
    """A signal told the launcher to end, and every rank has ended."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        self.signum = signum


class LoopbackRendezvous(RendezvousHandler):
    """A meeting of one agent, at a store that only this machine can reach.

    TCPStore would listen on every interface. It is handed a socket that is bound already, which
    also leaves no moment for another program to take the port.
    """

    def __init__(self) -> None:
        self._run_id = uuid.uuid4().hex
        listener = socket.create_server((LOOPBACK, 0))
        self._port: int = listener.getsockname()[1]
        self._store = TCPStore(
            LOOPBACK,
            self._port,
            is_master=True,
            timeout=timedelta(seconds=STORE_TIMEOUT_S),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


class StoppableAgent(LocalElasticAgent):
    """Ends its ranks when `stop_signal` is set, at a moment when it knows all of them.

    An exception raised by a signal handler may come between a rank's start and its entry in the
    list of those to end, which leaves the rank behind, or where Python only reports it and goes on.
    """

    stop_signal: signal.Signals | None = None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """How the ranks are; called every `monitor_interval`. Raises JobStopped."""
        if self.stop_signal is not None:
            raise JobStopped(self.stop_signal)
        result: RunResult = super()._monitor_workers(worker_group)
        return result


def run_ranks(
    command: Sequence[str], n_ranks: int, *, ready_file: Path | None = None
) -> list[RankFailure]:
    """Run `command` on `n_ranks` ranks to their end; what failed, empty when all went well.

    The first rank that fails ends the others. SIGINT ends the job too, but is passed to rank 0
    while `ready_file` exists, for programs that are talked to. Raises JobStopped after SIGINT,
    SIGTERM, SIGHUP or SIGQUIT.
    """
    if "LOGLEVEL" not in os.environ:
        _silence_agent()
    # or the agent would put its own handlers, which raise, in place of ours
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
    agent = _make_agent(command, n_ranks)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        first = agent.get_worker_group().workers[0].id
        is_conversation = ready_file is not None and ready_file.exists()
        if signum == signal.SIGINT and is_conversation and isinstance(first, int):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(first, signal.SIGINT)
            return
        agent.stop_signal = signal.Signals(signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, on_signal)
    try:
        failures = agent.run().failures
    except JobStopped as stopped:
        # Python's exit puts the default back where a handler is, and a second one would kill us
        signal.signal(stopped.signum, signal.SIG_IGN)
        raise
    return [
        RankFailure(rank, failure.exitcode, failure.timestamp) for rank, failure in failures.items()
    ]


def _make_agent(command: Sequence[str], n_ranks: int) -> StoppableAgent:
    spec = WorkerSpec(
        role="llama",
        local_world_size=n_ranks,
        rdzv_handler=LoopbackRendezvous(),
        entrypoint=command[0],
        args=tuple(command[1:]),
        max_restarts=0,
        monitor_interval=0.1,
    )
    # by default the agent leaves a folder behind for every job, empty or not
    logs = DefaultLogsSpecs(log_dir=os.devnull)
    return StoppableAgent(spec, logs_specs=logs, shutdown_timeout=GRACE_S)


def _silence_agent() -> None:
    """Keep off the console what the agent logs of ended ranks: the launcher says it in one line."""
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
