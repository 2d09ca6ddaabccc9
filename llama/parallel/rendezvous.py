"""How processes find each other: torchrun's variables, or the process group a program has made.

What is here works through the store that all ranks share, before there is any group to talk over.
Knows no layout and no device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from llama.errors import HardwareError, RankTimeoutError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """What a launcher told this process."""

    rank: int
    world_size: int
    local_rank: int
    master: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Launched | None:
        """From torchrun's variables; None when there is not a single one.

        Raises HardwareError when only some are there, or when they make no sense.
        """
        missing = [name for name in _VARIABLES if not environ.get(name)]
        if len(missing) == len(_VARIABLES):
            return None
        if missing:
            present = ", ".join(name for name in _VARIABLES if name not in missing)
            raise HardwareError(
                f"the launch environment is incomplete: {present} set but {', '.join(missing)} "
                "missing; start with torchrun or `python -m launch`, or unset all of them to run "
                "one process"
            )
        rank, world_size, local_rank, port = (
            _number(environ, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
        if rank >= world_size:
            raise HardwareError(f"RANK {rank} is outside WORLD_SIZE {world_size}")
        return cls(rank, world_size, local_rank, f"{environ['MASTER_ADDR']}:{port}")


@dataclass(frozen=True)
class World:
    """This process among the others; `store` is theirs in common, and new for each meeting.

    `is_given` says that the user's program had made the default process group already.
    """

    rank: int
    size: int
    local_rank: int | None
    store: Store
    is_given: bool


def meet(launched: Launched | None, *, timeout_s: float) -> World | None:
    """Reach the store that all ranks share; None for one process that nobody launched.

    A default process group that exists wins over the variables. Raises HardwareError when the
    meeting point cannot be used, RankTimeoutError when not everybody comes.
    """
    # A lazy connection ignores the timeout, so a rank that dies early would hang the others.
    os.environ.pop("TORCH_GLOO_LAZY_INIT", None)
    local_rank = launched.local_rank if launched else None
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        store = _own_part(distributed_c10d._get_default_store(), rank)
        return World(rank, size, local_rank, store, is_given=True)
    if launched is None:
        return None
    with meeting_errors(f"the ranks could not meet at {launched.master}"):
        timeout = timedelta(seconds=timeout_s)
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        store = _own_part(store, rank)
    return World(rank, size, local_rank, store, is_given=False)


def own_rank(launched: Launched | None) -> int | None:
    """This process's rank, None when nobody launched it and it is in no process group."""
    if dist.is_initialized():
        return dist.get_rank()
    return launched.rank if launched else None


def expected_sizes(environ: Mapping[str, str]) -> tuple[int, int]:
    """Ranks of the whole job, and on each host, as known before they meet.

    Raises HardwareError as `Launched.from_environment` does.
    """
    launched = Launched.from_environment(environ)
    size = launched.world_size if launched else 1
    if dist.is_initialized():
        size = dist.get_world_size()
    on_host = environ.get("LOCAL_WORLD_SIZE", "")
    return size, int(on_host) if on_host.isdecimal() and int(on_host) else size


def join(world: World, *, backend: str, timeout_s: float) -> None:
    """Make the default process group over `backend`, a torch backend string. Collective."""
    with meeting_errors(f"{world.size} ranks could not be connected over {backend}"):
        dist.init_process_group(
            backend,
            store=world.store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_s),
        )


def leave() -> None:
    """Give back the default process group, and every other one with it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_through_store(world: World, text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank. Collective, and needs no process group.

    The n-th call on one rank meets the n-th call on the others. Raises RankTimeoutError.
    """
    store = world.store
    with meeting_errors(f"not all of {world.size} ranks came to the start"):
        key = f"llama/start/{store.add(f'llama/start/count/{world.rank}', 1)}"
        store.set(f"{key}/{world.rank}", text)
        texts = [store.get(f"{key}/{rank}").decode() for rank in range(world.size)]
        if store.add(f"{key}/readers", 1) == world.size:
            store.set(f"{key}/all", "")
        if world.rank == 0:  # it may host the store, and end the job for what it has read
            store.wait([f"{key}/all"])
        return texts


@contextmanager
def meeting_errors(what: str) -> Iterator[None]:
    """torch's errors of the body as ours."""
    try:
        yield
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if re.search("timed? ?out", text, re.IGNORECASE):
            raise RankTimeoutError(
                f"{what} in time: {text}; look for a rank that did not start or has failed"
            ) from error
        raise HardwareError(
            f"{what}: {text}; check MASTER_ADDR and MASTER_PORT, and for several hosts that the "
            "interface in GLOO_SOCKET_IFNAME reaches the others"
        ) from error


def _own_part(store: Store, rank: int) -> Store:
    """Where this meeting leaves its keys: what an earlier one of the same processes left is stale.

    The n-th meeting of one rank is the n-th of the others.
    """
    return distributed_c10d.PrefixStore(f"llama/{store.add(f'llama/meetings/{rank}', 1)}", store)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not text.isdecimal():
        raise HardwareError(f"{name} must be a whole number, got {text!r}")
    return int(text)
