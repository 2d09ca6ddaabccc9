"""The memory that ranks have: of this machine, or of devices that are only spoken of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llama.engine.memory import device_bytes, free_bytes

RANKS_A_HOST = 8
"""GPUs of one host, where nothing else is known."""


@dataclass(frozen=True)
class Machine:
    """Hosts of `n_devices` devices with `device_bytes` each, and `ranks_a_host` ranks.

    A CPU is one device for all ranks of its host. `can_grow`: there may be as many hosts as it
    takes.
    """

    n_devices: int
    device_bytes: int
    ranks_a_host: int
    can_grow: bool = False

    @classmethod
    def here(cls, device_type: str, *, ranks_a_host: int | None = None) -> Machine:
        """This host with what it has free. Of `ranks_a_host` None, all ranks are here."""
        free = free_bytes(torch.device(device_type), local_ranks=1)
        return cls(_n_devices(device_type), free, ranks_a_host or 2**20)

    @classmethod
    def empty(cls, device_type: str, *, ranks_a_host: int) -> Machine:
        """Hosts like this one with nothing on them: the same whoever looks, and when."""
        whole = device_bytes(device_type)
        return cls(_n_devices(device_type), whole, ranks_a_host)

    @classmethod
    def of_gpus(cls, memory_bytes: int) -> Machine:
        """GPUs of `memory_bytes`, in any number, a rank on each."""
        return cls(RANKS_A_HOST, memory_bytes, RANKS_A_HOST, can_grow=True)

    def rank_bytes(self, n_ranks: int) -> int:
        """What each of `n_ranks` ranks may take; those that share a device share it equally."""
        on_host = min(n_ranks, self.ranks_a_host)
        return self.device_bytes // -(-on_host // self.n_devices)


def _n_devices(device_type: str) -> int:
    return max(1, torch.cuda.device_count()) if device_type == "cuda" else 1
