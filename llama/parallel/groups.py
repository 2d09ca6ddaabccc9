"""The communicators of one rank: data along tp and pp, host values along dp, control for all.

Control groups are gloo on the CPU whatever carries the data, and wait much longer: an idle engine
is no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from llama.config import ParallelConfig
from llama.errors import HardwareError
from llama.parallel import fairscale
from llama.parallel.backend import BackendChoice, BackendName
from llama.parallel.comm import Communicator, SingleCommunicator
from llama.parallel.layout import ParallelLayout
from llama.parallel.liveness.failure import FailureRecord
from llama.parallel.torch_comm import TorchCommunicator, gloo_backends


@dataclass(frozen=True)
class Communicators:
    """One rank's communicator of every axis."""

    tp: Communicator
    pp: Communicator
    dp: Communicator
    replica: Communicator
    world: Communicator
    messages: Communicator
    """The replica again, for its mailbox alone: messages and collectives do not mix on a group."""
    local: Communicator


@dataclass(frozen=True)
class GroupMaker:
    """Makes the groups of one layout as `rank` sees them; what it made, `undo` gives back.

    `hosts` has the same text for ranks that share memory, in rank order.
    """

    layout: ParallelLayout
    rank: int
    hosts: tuple[str, ...]
    config: ParallelConfig
    failure: FailureRecord
    undo: ExitStack

    def make(self, choice: BackendChoice) -> Communicators:
        """All communicators, connected but untried. Collective.

        Raises UsageError when the program has made fairscale groups of another layout,
        HardwareError when it made them over another transport than `choice`.
        """
        groups = self._model_parallel_groups(choice)
        world = self._control("world", [tuple(range(self.layout.world_size))])
        replica = world
        if self.layout.dp_size > 1:
            replica = self._control("replica", self._every(self.layout.replica_group))
        messages = self._control("messages", self._every(self.layout.replica_group))
        dp = self._data("dp", groups.dp)
        if "cpu" not in gloo_backends(groups.dp):  # the program made it, for something else
            dp = self._control("dp", self._every(self.layout.dp_group))
        return Communicators(
            tp=self._data("tp", groups.tp),
            pp=self._data("pp", groups.pp),
            dp=dp,
            replica=replica,
            world=world,
            messages=messages,
            local=self._control("local", self._every(self._local_group)),
        )

    def _model_parallel_groups(self, choice: BackendChoice) -> fairscale.ModelParallelGroups:
        """The program's, else new ones."""
        groups = fairscale.existing_groups()
        if groups is None:
            assert choice.name != "none"
            groups = fairscale.make_groups(self.layout, backend=choice.name)
            self.undo.callback(fairscale.forget_groups)
            for group in vars(groups).values():
                self.undo.callback(_destroy, group)
                set_gloo_timeout(group, self.config.timeout_s)
        fairscale.check_groups(groups, self.layout, rank=self.rank)
        if transport_of(groups.tp) != choice.name:
            raise HardwareError(
                f"backend {choice.name!r} was asked for, but the program's model-parallel groups "
                f"use {transport_of(groups.tp)!r}; drop one of the two"
            )
        return groups

    def _data(self, axis: str, group: dist.ProcessGroup) -> Communicator:
        if dist.get_world_size(group) == 1:
            return SingleCommunicator()
        patience_s = self.config.timeout_s
        if axis == "pp" and self.config.limit_s("heartbeat_timeout_s"):
            # the stage before may compute for long, and the heartbeat knows whether it does
            patience_s = self.config.control_timeout_s
        return self._over(group, axis, patience_s)

    def _control(self, axis: str, groups: Iterable[tuple[int, ...]]) -> Communicator:
        """The communicator of this rank's group among `groups`, all of them made by all ranks."""
        mine: Communicator = SingleCommunicator()
        for ranks in groups:
            if len(ranks) == 1:
                continue
            # Connecting must not take as long as waiting for work may.
            timeout = timedelta(seconds=self.config.timeout_s)
            group = dist.new_group(list(ranks), backend="gloo", timeout=timeout)
            if self.rank in ranks:
                self.undo.callback(_destroy, group)
                patience_s = self.config.control_timeout_s
                set_gloo_timeout(group, patience_s)
                mine = self._over(group, axis, patience_s)
        return mine

    def _over(self, group: dist.ProcessGroup, axis: str, timeout_s: float) -> TorchCommunicator:
        comm = TorchCommunicator(group, axis=axis, timeout_s=timeout_s, failure=self.failure)
        self.undo.callback(comm.close)
        return comm

    def _local_group(self, rank: int) -> tuple[int, ...]:
        return tuple(r for r, host in enumerate(self.hosts) if host == self.hosts[rank])

    def _every(self, group_of: Callable[[int], tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Every group of an axis once, in the same order on all ranks."""
        return list(dict.fromkeys(group_of(rank) for rank in range(self.layout.world_size)))


def transport_of(group: dist.ProcessGroup) -> BackendName:
    """What carries accelerator tensors in `group`, or CPU tensors where it takes no other."""
    served_by_gloo = set(gloo_backends(group))
    return "gloo" if {device.type for device in group._device_types} == served_by_gloo else "nccl"


def try_all(communicators: Communicators, *, device: torch.device) -> None:
    """One small sum over every group, so that a bad link shows now. Collective.

    Raises PeerLostError or RankTimeoutError, or HardwareError for a wrong sum.
    """
    for axis, comm in vars(communicators).items():
        on = device if axis in ("tp", "pp") else torch.device("cpu")
        total = comm.all_reduce(torch.tensor([comm.rank + 1.0], device=on)).item()
        expected = comm.size * (comm.size + 1) / 2
        if total != expected:
            raise HardwareError(
                f"a test sum over the {axis} group of {comm.size} ranks gave {total}, not "
                f"{expected}; check the links between its hosts"
            )


def set_gloo_timeout(group: dist.ProcessGroup, timeout_s: float) -> None:
    """Bound the collectives of a gloo group.

    fairscale cannot be told a timeout, and torch's `new_group` does not inherit one.
    """
    for backend in gloo_backends(group).values():
        backend._set_default_timeout(timedelta(seconds=timeout_s))


def _destroy(group: dist.ProcessGroup) -> None:
    """Give a group back, unless whoever owns the default group has given back everything."""
    if dist.is_initialized():
        dist.destroy_process_group(group)
