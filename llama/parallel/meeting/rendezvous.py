"""How processes find each other: at a launcher's store, at rank 0's, or in a program's own group.

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

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from llama.errors import HardwareError, LlamaError, PeerLostError, RankTimeoutError
from llama.parallel.meeting.addresses import address_on
from llama.parallel.meeting.launched import Launched
from llama.parallel.meeting.meeting_place import find_meeting_place
from llama.parallel.meeting.roll_call import LISTENING_S, Presence, roll_call, share_of_cores
from llama.parallel.meeting.stores import within

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


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
    """Reach the store that all ranks share, and wait there for every one of them.

    None for one process that nobody launched. A default process group that exists wins over the
    variables. Ranks on the same cores share them out, unless OMP_NUM_THREADS is set. Raises
    HardwareError when the meeting point cannot be used, RankTimeoutError when not everybody comes,
    PeerLostError when who hosts the store ends meanwhile.
    """
    # A lazy connection ignores the timeout, so a rank that dies early would hang the others.
    os.environ.pop("TORCH_GLOO_LAZY_INIT", None)
    local_rank = launched.local_rank if launched else None
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        store, place = distributed_c10d._get_default_store(), "the store of the program's group"
    elif launched is not None:
        rank, size = launched.rank, launched.world_size
        store, place = job_store(launched, timeout_s), f"the store at {launched.master}"
    else:
        return None
    with meeting_errors(f"the ranks could not meet at {place}"):
        try:
            store, presences = within(
                lambda: _assemble(store, rank=rank, size=size, timeout_s=timeout_s),
                timeout_s + 2 * LISTENING_S,
            )
        except dist.DistNetworkError as error:
            raise PeerLostError(
                f"{place} is gone: its host ended before all {size} ranks had come; look at what "
                "rank 0 and the launcher printed"
            ) from error
    n_threads = share_of_cores(presences, rank)
    if not os.environ.get("OMP_NUM_THREADS") and n_threads < torch.get_num_threads():
        torch.set_num_threads(n_threads)
    return World(rank, size, local_rank, store, is_given=dist.is_initialized())


def job_store(launched: Launched, timeout_s: float) -> Store:
    """This process's connection to the store of all ranks; `timeout_s` bounds its operations too.

    Rank 0 hosts it unless the launcher does, on the one address that the ranks need. gloo and NCCL
    are told to use that address's interface, unless they were told another. Raises HardwareError
    when the address cannot be used, RankTimeoutError when nobody answers there.
    """
    with meeting_errors(f"the ranks could not meet at {launched.master}"):
        place = find_meeting_place(launched, timeout_s=timeout_s)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = os.environ.get(name) or place.interface
        address_on(os.environ["GLOO_SOCKET_IFNAME"])
        if launched.hosts_store:
            store = place.host(timeout_s=timeout_s)
        else:
            host = "the launcher" if launched.has_launcher_store else "rank 0"
            store = place.reach(host=host, timeout_s=timeout_s)
        return as_ranks_see(store, attempt=launched.attempt)


def as_ranks_see(store: Store, attempt: int = 0) -> Store:
    """The part of a launcher's store where `job_store` has its keys, apart from other attempts'."""
    return distributed_c10d.PrefixStore(f"/worker/attempt_{attempt}", store)


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
    size, on_host = (launched.world_size, launched.local_world_size) if launched else (1, None)
    if dist.is_initialized():
        size = dist.get_world_size()
    return size, on_host or size


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
    except LlamaError:  # it may be an OSError as well
        raise
    except (dist.DistError, RuntimeError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, TimeoutError) or re.search("timed? ?out", text, re.IGNORECASE):
            raise RankTimeoutError(
                f"{what} in time: {text}; look for a rank that did not start or has failed"
            ) from error
        raise HardwareError(
            f"{what}: {text}; check MASTER_ADDR and MASTER_PORT, and for several hosts that the "
            "interface in GLOO_SOCKET_IFNAME reaches the others"
        ) from error


def _assemble(
    whole: Store, *, rank: int, size: int, timeout_s: float
) -> tuple[Store, list[Presence]]:
    store = _own_part(whole, rank)
    return store, roll_call(store, rank=rank, size=size, timeout_s=timeout_s)


def _own_part(store: Store, rank: int) -> Store:
    """Where this meeting leaves its keys: what an earlier one of the same processes left is stale.

    The n-th meeting of one rank is the n-th of the others.
    """
    return distributed_c10d.PrefixStore(f"llama/{store.add(f'llama/meetings/{rank}', 1)}", store)
