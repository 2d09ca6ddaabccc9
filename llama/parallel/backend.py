"""Which device computes and which transport carries the data: two choices, from all ranks' facts.

Pure: the same facts give the same choice on every rank. What the user asked for is checked and
kept, never exchanged for something else; what was left open gets the best that works everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama.errors import HardwareError, UsageError
from llama.parallel.device import DeviceFacts

BackendName = Literal["nccl", "gloo", "none"]
_BACKENDS = ("gloo", "nccl")
_DEVICE_TYPES = ("cpu", "cuda", "mps")
_INTEL = {"backend": "xccl", "device": "xpu"}
"""What torch has for Intel's GPUs, and this package has not."""


@dataclass(frozen=True)
class BackendChoice:
    """What torch makes the data groups with, "none" for one process, and why, in one line.

    `is_surprising` when there are GPU drivers, and nobody has asked to do without them.
    """

    name: BackendName
    reason: str
    is_surprising: bool = False

    def log_level(self, rank: int = 0) -> int:
        """How loudly `rank` says so: one warning is enough."""
        return logging.WARNING if self.is_surprising and rank == 0 else logging.INFO


def parse_device(device: str | None) -> tuple[str | None, int | None]:
    """Type and index of "cuda:1", None for what is left open. Raises UsageError."""
    if device is None:
        return None, None
    kind, colon, index = str(device).partition(":")
    if kind == _INTEL["device"]:
        return kind, None  # `choose` has more to say of it
    if kind not in _DEVICE_TYPES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device {device!r}; known: cpu, cuda, cuda:INDEX, mps")
    return kind, int(index) if index else None


def choose(
    facts: Sequence[DeviceFacts],
    *,
    device: str | None = None,
    backend: str | None = None,
    is_alone: bool = False,
) -> tuple[str, BackendChoice]:
    """The device type ("cpu", "cuda", "mps") and the backend for ranks with these `facts`.

    `device` and `backend` are the user's explicit wishes. `is_alone` means one process without any
    process group. Raises HardwareError for what cannot be had, UsageError for what is unknown.
    """
    _refuse_intel(facts, device=device, backend=backend)
    kind, _ = parse_device(device)
    if backend is not None and backend not in _BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(_BACKENDS)}")
    why_not_own_gpu = _why_not_gpu(facts) or _why_shared(facts)
    chosen, reason = _choose_device(facts, kind, why_not_own_gpu=why_not_own_gpu)
    why_not_nccl = why_not_own_gpu or _why_not_built(facts)
    if kind in ("cpu", "mps"):
        why_not_nccl = f"it moves GPU memory only and {reason}"
    if backend == "nccl" and why_not_nccl:
        raise HardwareError(
            f"backend 'nccl' cannot be used: {why_not_nccl}; leave the backend open or ask for "
            "'gloo'"
        )
    is_surprising = kind is None and any(fact.driver_problem for fact in facts)
    if is_alone:
        return chosen, BackendChoice("none", f"one process; {reason}", is_surprising)
    if backend == "nccl" or not (backend or why_not_nccl):
        return chosen, BackendChoice("nccl", reason)
    if backend:
        reason += "; backend gloo was asked for"
    elif chosen != "cpu":
        reason += f"; nccl cannot be used: {why_not_nccl}"
    if chosen != "cpu":
        reason += "; data is staged through the CPU"
    return chosen, BackendChoice("gloo", reason, is_surprising)


def _refuse_intel(facts: Sequence[DeviceFacts], *, device: str | None, backend: str | None) -> None:
    for name, asked in (("device", device), ("backend", backend)):
        if asked is not None and str(asked).partition(":")[0] == _INTEL[name]:
            seen = [rank for rank, fact in enumerate(facts) if fact.xpu_count]
            found = f"torch sees one on {_name(facts, seen)}" if seen else "torch sees none"
            raise HardwareError(
                f"{name} {asked!r} cannot be used: Intel GPUs are not supported ({found}); leave "
                f"the {name} open or ask for {'cpu' if name == 'device' else 'gloo'!r}"
            )


def _choose_device(
    facts: Sequence[DeviceFacts], kind: str | None, *, why_not_own_gpu: str
) -> tuple[str, str]:
    """Device type and why."""
    if kind is None:
        if why_not_own_gpu:
            return "cpu", why_not_own_gpu
        return "cuda", "every rank has a working GPU of its own"
    why_not = ""
    if kind == "cuda":
        why_not = _why_not_gpu(facts)
    elif kind == "mps" and len(facts) > 1:
        why_not = f"it serves one process, not {len(facts)} ranks"
    elif kind == "mps" and not facts[0].has_mps:
        why_not = f"{facts[0].host} has none that torch can use"
    if why_not:
        raise HardwareError(
            f"device {kind!r} cannot be used: {why_not}; leave the device open or ask for 'cpu'"
        )
    return kind, f"device {kind} was asked for"


def _why_not_gpu(facts: Sequence[DeviceFacts]) -> str:
    """Why not every rank can compute on a GPU, "" when all can."""
    without = [rank for rank, fact in enumerate(facts) if not fact.cuda_works]
    if not without:
        return ""
    text = f"no usable GPU on {_name(facts, without)} ({facts[without[0]].cuda_problem})"
    driver = [rank for rank in without if facts[rank].has_driver]
    if driver:
        build = facts[driver[0]].gpu_build
        text += (
            f"; warning: there is a GPU driver on {_name(facts, driver)}, but torch cannot use it "
            f"({f'a build for {build}' if build else 'a build without GPU support'}, or a driver "
            "that does not match)"
        )
    return text


def _why_shared(facts: Sequence[DeviceFacts]) -> str:
    """Which ranks sit on one GPU, "" when each has its own."""
    owners: dict[tuple[str, str], int] = {}
    for rank, fact in enumerate(facts):
        first = owners.setdefault((fact.host, fact.cuda_uuid), rank)
        if first != rank:
            return f"ranks {first} and {rank} share GPU {fact.cuda_index} of {fact.host}"
    return ""


def _why_not_built(facts: Sequence[DeviceFacts]) -> str:
    """Whose torch lacks NCCL, "" when nobody's does."""
    without = [rank for rank, fact in enumerate(facts) if not fact.has_nccl]
    return f"torch was built without NCCL on {_name(facts, without)}" if without else ""


def _name(facts: Sequence[DeviceFacts], ranks: Sequence[int]) -> str:
    """'any rank' or 'rank 1 (hostB)' or 'ranks 1, 3 (hostB, hostC)'; the host for one process."""
    hosts = ", ".join(dict.fromkeys(facts[rank].host for rank in ranks))
    if len(facts) == 1:
        return hosts
    if len(ranks) == len(facts):
        return "any rank"
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(map(str, ranks))} ({hosts})"
