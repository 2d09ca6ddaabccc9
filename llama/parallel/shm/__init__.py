"""Ranks of one host that talk through memory they share: `connect`, `ShmCommunicator`."""

from __future__ import annotations

from llama.parallel.shm.communicator import ShmCommunicator
from llama.parallel.shm.connect import connect

__all__ = ["ShmCommunicator", "connect"]
