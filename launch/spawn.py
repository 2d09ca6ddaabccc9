"""Runs a request: meets the other nodes, starts this machine's ranks, and says how it ended."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from threading import Thread

from launch import console, env
from launch.affinity import shares_of_this_machine
from launch.announce import ANNOUNCED_S, announce_end, announce_stop, first_failure
from launch.fork_check import why_not
from launch.hardware import Machine, import_torch, probe
from launch.job import Job, plan, show
from launch.logs import RankOutput
from launch.nodes import Nodes, meet_nodes
from launch.outcome import PIPE_CLOSED, Outcome, describe
from launch.process import RankCommand
from launch.program import check_program
from launch.request import LaunchRequest
from launch.stops import (
    Conversation,
    ReceivedSignals,
    exiting_on_interrupt,
    ignore_further_stops,
)
from launch.supervisor import Supervisor
from llama.errors import LlamaError
from llama.log import get_logger
from llama.parallel.wish import with_environment


def launch(request: LaunchRequest, *, forward_interrupt: bool = False) -> int:
    """Run the request's program on its ranks and wait; returns the exit status of the whole.

    0 when every rank ended well, else that of the rank that failed first; 128 + n for a signal n.
    With `forward_interrupt`, rank 0 may ask for Ctrl-C (env.READY_FD) instead of its ending the
    job. Raises UsageError, HardwareError, and for several nodes what `meet_nodes` raises.
    """
    with exiting_on_interrupt():
        import_torch(request.count_ranks(n_gpus=0))
        machine = probe()
        check_program(request.program)
        limits = with_environment(request.parallel_config, os.environ)
        nodes = meet_nodes(
            request.nodes,
            nproc=request.count_ranks(machine.n_gpus),
            timeout_s=limits.limit_s("init_timeout_s"),
            say=console.say,
        )
        with nodes, Conversation() if forward_interrupt else nullcontext() as conversation:
            return _run(request, machine, nodes, conversation)


def _run(
    request: LaunchRequest, machine: Machine, nodes: Nodes, conversation: Conversation | None
) -> int:
    """From the meeting to its end, of which the other nodes hear in any case."""
    host = nodes.hosts[request.nodes.node_rank]
    status = LlamaError.exit_code
    try:
        job = plan(request, machine, met=nodes if request.nodes.nnodes > 1 else None)
        output = RankOutput(
            range(nodes.first_rank, nodes.first_rank + job.n_local),
            prefix=request.has_prefix and nodes.world_size > 1 and conversation is None,
            log_dir=request.log_dir,
            say=console.say,
        )
        show(job, machine)
        announcing: list[Thread] = []
        supervisor = Supervisor(
            output,
            grace_s=request.shutdown_timeout_s,
            conversation=conversation,
            announce=lambda end: announcing.append(announce_end(nodes.store, end, host=host)),
            announce_stop=lambda signum: announcing.extend(
                [announce_stop(nodes.store, signum, rank=nodes.first_rank, host=host)]
                if request.nodes.nnodes > 1
                else []
            ),
            lost=nodes.lost,
            started=lambda: nodes.store,
        )
        is_forked = may_fork(job, machine)
        outcome = supervisor.run(commands_for(job, nodes, conversation, is_forked=is_forked))
        status = outcome.exit_code
        for thread in announcing:
            thread.join(ANNOUNCED_S)
        tell(outcome, nodes, host=host)
    finally:
        with ReceivedSignals() as signals:
            nodes.finish(status, hurry=lambda: bool(signals.take()))
    if outcome.stopped_by is not None:
        ignore_further_stops()
    return status


def may_fork(job: Job, machine: Machine) -> bool:
    """Whether ranks can be copies of this process, which then has imported what they need."""
    request = job.request
    if not request.has_fork or machine.n_gpus or request.nodes.nnodes > 1:
        return False
    for name in request.preload:
        import_module(name)  # before the question, since one may start a thread
    reason = why_not(request.program, dict(os.environ) | job.settings)
    if reason:
        get_logger().info("every rank starts an interpreter of its own: %s", reason)
        return False
    gc.freeze()  # the copies need not walk through what is here, which would copy its memory too
    return True


def commands_for(
    job: Job, nodes: Nodes, conversation: Conversation | None, *, is_forked: bool = False
) -> list[RankCommand]:
    """One for every rank of this machine."""
    own = job.request.nodes.node_rank
    given = dict(os.environ) | job.settings
    given.pop(env.READY_FD, None)  # of a launcher that this one runs under
    cpus: Sequence[frozenset[int]] = [frozenset()] * job.n_local
    if job.request.has_affinity:
        cpus = shares_of_this_machine(job.n_local)
    commands = []
    for local_rank in range(job.n_local):
        environ = given | env.place_of(local_rank, node_rank=own, nodes=nodes)
        is_spoken_to = conversation is not None and environ["RANK"] == "0"
        if conversation is not None and is_spoken_to:
            environ[env.READY_FD] = str(conversation.writer)
        commands.append(
            RankCommand(
                rank=int(environ["RANK"]),
                words=(sys.executable, "-u", *job.request.program),
                environ=environ,
                cpus=cpus[local_rank],
                pass_fds=(conversation.writer,) if conversation and is_spoken_to else (),
                is_forked=is_forked,
            )
        )
    return commands


def tell(outcome: Outcome, nodes: Nodes, *, host: str) -> None:
    """The last line: what ended the job; nothing after a good end, or when nobody reads on."""
    cause = outcome.cause
    if outcome.stopped_by is not None:
        console.say(f"stopped by {outcome.stopped_by.name}; every rank has ended")
    elif outcome.lost is not None:
        console.say(outcome.lost + _first_words(nodes, besides=None))
    elif cause is not None and cause.exit_code != PIPE_CLOSED:
        console.say(describe(cause, host=host) + _first_words(nodes, besides=cause.rank))


def _first_words(nodes: Nodes, *, besides: int | None) -> str:
    """The record of the job's first failure, unless it is that of rank `besides`."""
    first = first_failure(nodes.store, nodes.first_rank)
    if first is None or first.rank == besides:
        return ""
    return f"; first failure: {first.line}"
