"""How many KV blocks fit: what a device has free, and the number all ranks can hold.

Every rank must use the same number, since one scheduler deals blocks for all; so it is a minimum.
Ranks that share a device, the cores' memory or one GPU, share what it has free.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch

from llama.config import EngineConfig
from llama.errors import OutOfMemoryError
from llama.log import get_logger
from llama.parallel.context import ParallelContext

if sys.platform == "linux":
    import resource

_GIB = 1024**3
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_STATM = Path("/proc/self/statm")


def free_bytes(device: torch.device, *, local_ranks: int) -> int:
    """Memory that one of `local_ranks` equal ranks may still take on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // local_ranks
    return min(_free_host_bytes() // local_ranks, _free_address_space())


def device_bytes(device_type: str) -> int:
    """All the memory of one device, whoever holds it."""
    if device_type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _lines(_CGROUP / "memory.max") if sys.platform == "linux" else []
    return min(host, int(limit[0])) if limit and limit[0] != "max" else host


def ranks_on_device(context: ParallelContext) -> int:
    """How many ranks have this rank's device, itself included. Collective over the world."""
    name = context.host
    if context.device.type == "cuda":
        name += f" {torch.cuda.get_device_properties(context.device).uuid}"
    digest = hashlib.sha256(name.encode()).digest()[:8]
    mine = torch.tensor([int.from_bytes(digest, "big", signed=True)])
    return int((context.world.all_gather(mine, dim=0) == mine).sum())


def _free_host_bytes() -> int:
    """Free host memory, within the container's limit where there is one."""
    if sys.platform == "linux":
        fields = dict(line.split(":", 1) for line in _lines(_MEMINFO))
        free = int(fields["MemAvailable"].split()[0]) * 1024
        limited = _cgroup_free_bytes()
        return free if limited is None else min(free, limited)
    # No portable count of free pages: half of what the machine has is a cautious guess.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_address_space() -> int:
    """What this process's own limit (ulimit -v) leaves it."""
    if sys.platform != "linux":
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    pages = int(_lines(_STATM)[0].split()[0])
    return max(0, limit - pages * resource.getpagesize())


def _cgroup_free_bytes() -> int | None:
    """What the cgroup v2 limit of this container leaves, None when there is no limit."""
    limit, used = (_lines(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if not limit or not used or limit[0] == "max":
        return None
    # checkpoint files just read count as used, but the kernel drops them when asked for memory
    fields = dict(line.split() for line in _lines(_CGROUP / "memory.stat"))
    return max(0, int(limit[0]) - int(used[0]) + int(fields.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def wanted_blocks(config: EngineConfig, *, ring_blocks: int) -> int:
    """KV blocks that were asked for, else those of a full batch."""
    return config.num_blocks or config.max_batch_size * ring_blocks


def needed_blocks(config: EngineConfig, *, ring_blocks: int) -> int:
    """KV blocks without which nothing runs: those of one sequence of max_seq_len."""
    return min(ring_blocks, wanted_blocks(config, ring_blocks=ring_blocks))


def blocks_that_fit(
    config: EngineConfig,
    *,
    ring_blocks: int,
    left_bytes: int,
    activation_bytes: int,
    block_bytes: int,
) -> int:
    """KV blocks, at most those wanted, that fit into the `left_bytes` beside the weights.

    The activations of one step come first; memory_fraction of what is left may be taken.
    """
    room = int((left_bytes - activation_bytes) * config.memory_fraction)
    wanted = wanted_blocks(config, ring_blocks=ring_blocks)
    return min(wanted, max(0, room) // block_bytes)


def agree_num_blocks(
    config: EngineConfig,
    *,
    ring_blocks: int,
    block_bytes: int,
    activation_bytes: int,
    context: ParallelContext,
) -> int:
    """Blocks that every rank of the world can hold, at most what a full batch needs. Collective.

    `block_bytes` is one block over this rank's layers and heads. Raises OutOfMemoryError on every
    rank when not even one sequence of max_seq_len fits somewhere.
    """
    wanted = wanted_blocks(config, ring_blocks=ring_blocks)
    needed = needed_blocks(config, ring_blocks=ring_blocks)
    mine = blocks_that_fit(
        config,
        ring_blocks=ring_blocks,
        left_bytes=free_bytes(context.device, local_ranks=ranks_on_device(context)),
        activation_bytes=activation_bytes,
        block_bytes=block_bytes,
    )
    everyone = context.world.all_gather(torch.tensor([[mine, block_bytes]]), dim=0)
    num_blocks, poorest = everyone[:, 0].min(dim=0)
    if num_blocks < needed:
        need, have = (int(n * everyone[poorest, 1]) / _GIB for n in (needed, num_blocks))
        shorter = f"lower max_seq_len to {int(num_blocks) * config.block_size} or less, or "
        raise OutOfMemoryError(
            f"rank {int(poorest)} has room for {int(num_blocks)} KV blocks ({have:.3g} GiB) but "
            f"one sequence of max_seq_len {config.max_seq_len} needs {needed} ({need:.3g} GiB); "
            f"{shorter if num_blocks else ''}spread the model over more ranks"
        )
    if num_blocks < wanted and context.rank == 0:
        get_logger().warning(
            "KV cache holds %d blocks of %d tokens, not the %d that a full batch could need; "
            "long batches will wait or be recomputed",
            num_blocks,
            config.block_size,
            wanted,
        )
    return int(num_blocks)
