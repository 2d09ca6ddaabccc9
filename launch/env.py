"""What a rank finds in its environment. Reads and starts nothing.

`settings` carries this launcher's options to a program that was never told of them; `place_of` has
the variables of torchrun, by which programs know their place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.nodes import Nodes

TP_SIZE = "LLAMA_TP_SIZE"
PP_SIZE = "LLAMA_PP_SIZE"
BACKEND = "LLAMA_BACKEND"
DEVICE = "LLAMA_DEVICE"
TRANSPORT = "LLAMA_TRANSPORT"
LOG_DIR = "LLAMA_LOG_DIR"
JOB_ID = "LLAMA_JOB_ID"
FORK = "LLAMA_FORK"
"""0 gives every rank an interpreter of its own."""
READY_FD = "LLAMA_READY_FD"
"""Where rank 0 writes "1" when Ctrl-C is for it to handle, and "0" when no longer."""
LAUNCHER_PID = "LLAMA_LAUNCHER_PID"
"""Without this process, a rank has no business any more."""
OPTIMIZE = "PYTHONOPTIMIZE"
TORCH_LOG = "TORCH_CPP_LOG_LEVEL"
"""torch reads it when it is loaded. Its warnings of a store that died are pages of C++ frames."""
TORCH_LOG_LEVEL = "ERROR"
THREADS = "OMP_NUM_THREADS"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"


def settings(
    environ: Mapping[str, str],
    *,
    tp_size: int | None,
    pp_size: int | None,
    backend: str | None,
    device: str | None,
    n_threads: int,
    interface: str | None,
    transport: str | None = None,
    limits_s: Mapping[str, float] | None = None,
    log_dir: Path | None = None,
    optimize: int = 0,
) -> dict[str, str]:
    """What to add to `environ` for every rank.

    An option that was given wins over the environment; threads and network interface are only
    defaults, so what the user has set stays. `optimize` counts the -O of this interpreter.
    """
    options: dict[str, object] = {
        TP_SIZE: tp_size,
        PP_SIZE: pp_size,
        BACKEND: backend,
        DEVICE: device,
        TRANSPORT: transport,
        LOG_DIR: log_dir and log_dir.absolute(),
    }
    options |= {f"LLAMA_{name.upper()}": f"{limit:g}" for name, limit in (limits_s or {}).items()}
    defaults: dict[str, object] = {THREADS: n_threads, GLOO_INTERFACE: interface}
    if interface not in (None, "lo", "lo0"):  # NCCL finds its own ways on one machine
        defaults[NCCL_INTERFACE] = interface
    added = {name: str(value) for name, value in options.items() if value is not None}
    added[TORCH_LOG] = environ.get(TORCH_LOG) or TORCH_LOG_LEVEL
    if optimize:
        added[OPTIMIZE] = str(optimize)
    for name, default in defaults.items():
        if default is not None and name not in environ:
            added[name] = str(default)
    return added


def quieten_torch(environ: MutableMapping[str, str]) -> None:
    """For a process of ours, before it imports torch: no pages, unless the user wants them."""
    environ[TORCH_LOG] = environ.get(TORCH_LOG) or TORCH_LOG_LEVEL


def place_of(local_rank: int, *, node_rank: int, nodes: Nodes) -> dict[str, str]:
    """The place of one rank of this machine, in the words of torchrun."""
    return {
        "RANK": str(nodes.first_rank + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(nodes.world_size),
        "LOCAL_WORLD_SIZE": str(nodes.nprocs[node_rank]),
        "GROUP_RANK": str(node_rank),
        "GROUP_WORLD_SIZE": str(len(nodes.nprocs)),
        "MASTER_ADDR": nodes.master_addr,
        "MASTER_PORT": str(nodes.master_port),
        "TORCHELASTIC_RUN_ID": nodes.run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher hosts it, no rank does
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        LAUNCHER_PID: str(os.getpid()),
    }
