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
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

LOOPBACK = "127.0.0.1"
STORE_TIMEOUT_S = 300
GRACE_S = 5
"""Time from SIGTERM to SIGKILL when the whole job is told to end."""


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


def run_ranks(
    command: Sequence[str], n_ranks: int, *, forward_interrupt: bool = False
) -> list[RankFailure]:
    """Run `command` on `n_ranks` ranks to their end; what failed, empty when all went well.

    The first rank that fails ends the others. With `forward_interrupt`, SIGINT is passed to rank 0,
    for programs that are talked to; else it ends the job. Raises JobStopped after SIGINT, SIGTERM,
    SIGHUP or SIGQUIT.
    """
    if "LOGLEVEL" not in os.environ:
        _silence_agent()
    # The agent would pass SIGINT on to every rank, and each would print a traceback.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGHUP,SIGQUIT"
    agent = _make_agent(command, n_ranks)

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        first = agent.get_worker_group().workers[0].id if forward_interrupt else None
        if isinstance(first, int):
            os.kill(first, signal.SIGINT)
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not break off the clean-up
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        failures = agent.run().failures
    except KeyboardInterrupt:
        raise JobStopped(signal.SIGINT) from None
    except SignalException as error:
        raise JobStopped(error.sigval) from None
    return [
        RankFailure(rank, failure.exitcode, failure.timestamp) for rank, failure in failures.items()
    ]


def _make_agent(command: Sequence[str], n_ranks: int) -> LocalElasticAgent:
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
    return LocalElasticAgent(spec, logs_specs=logs, shutdown_timeout=GRACE_S)


def _silence_agent() -> None:
    """Keep off the console what the agent logs of ended ranks: the launcher says it in one line."""
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
