"""Ranks over shared memory for tests, each speaking C or Python, beside the gloo they met over."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from llama.parallel.comm import Communicator
from llama.parallel.shm import ShmCommunicator, connect
from llama.parallel.torch_comm import TorchCommunicator
from tests.helpers.ranks import RankInfo


def both(
    info: RankInfo, native: tuple[int, ...], *, timeout_s: float = 30.0, **options: Any
) -> tuple[ShmCommunicator, Communicator]:
    """Shared memory, where the ranks `native` speak C and the others Python; and gloo."""
    info.init_process_group()
    gloo = TorchCommunicator(dist.group.WORLD, axis="tp", timeout_s=30.0)
    is_native = info.rank in native
    shm = connect(gloo, axis="tp", timeout_s=timeout_s, native=is_native, **options)
    assert shm.is_native == is_native
    return shm, gloo
