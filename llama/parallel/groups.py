"""The communicators of one rank: data along tp and pp, host values along dp, control for all.

Torch's groups are made whatever the transport: a program may look for them, shared memory is set up
over them, and they carry what crosses hosts. Control groups are gloo on the CPU, and wait much
longer: an idle engine is no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, fields
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

    @classmethod
    def of_one(cls) -> Communicators:
        """For one process, which has nobody to talk to."""
        return cls(*[SingleCommunicator()] * len(fields(cls)))


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

    def make(self, choice: BackendChoice) -> dict[str, Communicator]:
        """Of every axis but `messages` and `local`, connected but untried. Collective.

        Those two have groups of their own only where there is no shared memory. Raises UsageError
        when the program has made fairscale groups of another layout, HardwareError when it made
        them over another backend than `choice`.
        """
        groups = self._model_parallel_groups(choice)
        plain = {axis: self._data(axis, group) for axis, group in vars(groups).items()}
        if "cpu" not in gloo_backends(groups.dp):  # the program made it, for something else
            plain["dp"] = self.over_gloo("dp")
        plain["world"] = plain["replica"] = self.over_gloo("world")
        if self.layout.dp_size > 1:
            plain["replica"] = self.over_gloo("replica")
        return plain

    def groups_of(self, axis: str) -> list[tuple[int, ...]]:
        """Every group of an axis once, in the same order on all ranks."""
        return list(dict.fromkeys(map(self._members(axis), range(self.layout.world_size))))

    def group_of(self, axis: str) -> tuple[int, ...]:
        """The ranks of this rank's group, in their order there."""
        return self._members(axis)(self.rank)

    def by_host(self, ranks: Iterable[int]) -> list[tuple[int, ...]]:
        """`ranks` in parts that share memory, each in the order given."""
        parts: dict[str, tuple[int, ...]] = {}
        for rank in ranks:
            parts[self.hosts[rank]] = (*parts.get(self.hosts[rank], ()), rank)
        return list(parts.values())

    def patience_s(self, axis: str) -> float:
        """How long one call may take."""
        if axis in ("tp", "dp"):
            return self.config.timeout_s
        if axis == "pp" and not self.config.limit_s("heartbeat_timeout_s"):
            return self.config.timeout_s
        # the stage before may compute for long, and the heartbeat knows whether it does
        return self.config.control_timeout_s

    def over_gloo(self, axis: str, groups: Iterable[tuple[int, ...]] | None = None) -> Communicator:
        """The communicator of this rank's group among `groups`, all of them made by all ranks.

        By default they are the axis's. Ranks that are in none, or alone in theirs, get one of one.
        """
        mine: Communicator = SingleCommunicator()
        for ranks in self.groups_of(axis) if groups is None else groups:
            if len(ranks) == 1:
                continue
            # Connecting must not take as long as waiting for work may.
            timeout = timedelta(seconds=self.config.timeout_s)
            group = dist.new_group(list(ranks), backend="gloo", timeout=timeout)
            if self.rank in ranks:
                self.undo.callback(_destroy, group)
                set_gloo_timeout(group, self.patience_s(axis))
                mine = self._over(group, axis)
        return mine

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
        if backend_of(groups.tp) != choice.name:
            raise HardwareError(
                f"backend {choice.name!r} was asked for, but the program's model-parallel groups "
                f"use {backend_of(groups.tp)!r}; drop one of the two"
            )
        return groups

    def _data(self, axis: str, group: dist.ProcessGroup) -> Communicator:
        return SingleCommunicator() if dist.get_world_size(group) == 1 else self._over(group, axis)

    def _over(self, group: dist.ProcessGroup, axis: str) -> TorchCommunicator:
        patience_s = self.patience_s(axis)
        comm = TorchCommunicator(group, axis=axis, timeout_s=patience_s, failure=self.failure)
        self.undo.callback(comm.close)
        return comm

    def _members(self, axis: str) -> Callable[[int], tuple[int, ...]]:
        return {
            "tp": self.layout.tp_group,
            "pp": self.layout.pp_group,
            "dp": self.layout.dp_group,
            "replica": self.layout.replica_group,
            "messages": self.layout.replica_group,
            "world": lambda _: tuple(range(self.layout.world_size)),
            "local": lambda rank: next(
                ranks for ranks in self.by_host(range(self.layout.world_size)) if rank in ranks
            ),
        }[axis]


def backend_of(group: dist.ProcessGroup) -> BackendName:
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
