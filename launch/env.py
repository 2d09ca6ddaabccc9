"""What a rank finds in its environment besides torchrun's own variables. Reads and starts nothing.

torchrun's agent gives RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
The variables here carry this launcher's options to a program that was never told of them.
"""

from __future__ import annotations

from collections.abc import Mapping

TP_SIZE = "LLAMA_TP_SIZE"
PP_SIZE = "LLAMA_PP_SIZE"
BACKEND = "LLAMA_BACKEND"
DEVICE = "LLAMA_DEVICE"
READY_FILE = "LLAMA_READY_FILE"
"""Where rank 0 makes a file when Ctrl-C is for it to handle, and takes it away when no longer."""
OPTIMIZE = "PYTHONOPTIMIZE"
THREADS = "OMP_NUM_THREADS"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def settings(
    environ: Mapping[str, str],
    *,
    tp_size: int | None,
    pp_size: int | None,
    backend: str | None,
    device: str | None,
    n_threads: int,
    loopback: str | None,
    optimize: int = 0,
) -> dict[str, str]:
    """What to add to `environ` for every rank.

    An option that was given wins over the environment; threads and network interface are only
    defaults, so what the user has set stays. `optimize` counts the -O of this interpreter.
    """
    options = {TP_SIZE: tp_size, PP_SIZE: pp_size, BACKEND: backend, DEVICE: device}
    defaults = {THREADS: n_threads, GLOO_INTERFACE: loopback}
    added = {name: str(value) for name, value in options.items() if value is not None}
    if optimize:
        added[OPTIMIZE] = str(optimize)
    for name, default in defaults.items():
        if default is not None and name not in environ:
            added[name] = str(default)
    return added
