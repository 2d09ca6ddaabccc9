"""Which device computes and which transport carries the data: two choices, from every rank's facts.

Pure: the same facts give the same choice on every rank. What the user asked for is checked and
kept, never exchanged for something else; what was left open gets the best that works everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama.errors import HardwareError, UsageError
from llama.parallel.device import DeviceFacts

BackendName = Literal["nccl", "gloo", "none"]
_DEVICE_TYPES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class BackendChoice:
    """The transport of the data groups, "none" for one process, and why, in one line."""

    name: BackendName
    reason: str


def parse_device(device: str | None) -> tuple[str | None, int | None]:
    """Type and index of "cuda:1", None for what is left open. Raises UsageError."""
    if device is None:
        return None, None
    kind, _, index = device.partition(":")
    if kind not in _DEVICE_TYPES or (index and not index.isdecimal()) or device.endswith(":"):
        raise UsageError(
            f"unknown device {device!r}; known: {', '.join(_DEVICE_TYPES)}, cuda:INDEX"
        )
    return kind, int(index) if index else None


def choose(
    facts: Sequence[DeviceFacts],
    *,
    device: str | None = None,
    backend: str | None = None,
    is_alone: bool = False,
) -> tuple[str, BackendChoice]:
    """The device type ("cpu", "cuda", "mps") and the transport for ranks with these `facts`.

    `device` and `backend` are the user's explicit wishes. `is_alone` means one process without any
    process group. Raises HardwareError when a wish cannot be met, UsageError when it is unknown.
    """
    kind, _ = parse_device(device)
    if backend not in (None, "gloo", "nccl"):
        raise UsageError(f"unknown backend {backend!r}; known: gloo, nccl")
    unusable = _why_no_gpu(facts)
    shared = unusable or _why_gpus_are_shared(facts)
    chosen, device_reason = _choose_device(facts, kind, unusable=unusable, shared=shared)
    if is_alone:
        if backend == "nccl" and chosen != "cuda":
            raise HardwareError(f"backend 'nccl' needs a GPU: {unusable or 'device is not cuda'}")
        return chosen, BackendChoice("none", f"one process; {device_reason}")
    why_not = _why_no_nccl(facts, chosen, device_reason=device_reason, shared=shared)
    if backend == "nccl" and why_not:
        raise HardwareError(
            f"backend 'nccl' cannot be used: {why_not}; leave the backend open or ask for 'gloo'"
        )
    if why_not or backend == "gloo":
        asked = "gloo was asked for" if backend == "gloo" else why_not
        staged = "; data is staged through the CPU" if chosen != "cpu" else ""
        return chosen, BackendChoice("gloo", f"{asked}; {device_reason}{staged}")
    return chosen, BackendChoice("nccl", device_reason)


def _choose_device(
    facts: Sequence[DeviceFacts], kind: str | None, *, unusable: str, shared: str
) -> tuple[str, str]:
    """Device type and why."""
    if kind == "cuda":
        if unusable:
            raise HardwareError(f"device 'cuda' cannot be used: {unusable}; ask for 'cpu'")
        return "cuda", "device cuda was asked for"
    if kind == "mps":
        if len(facts) > 1:
            raise HardwareError(
                f"device 'mps' serves one process, not {len(facts)} ranks; start one or use 'cpu'"
            )
        if not facts[0].has_mps:
            raise HardwareError(f"device 'mps' cannot be used on {facts[0].host}; ask for 'cpu'")
        return "mps", "device mps was asked for"
    if kind == "cpu":
        return "cpu", "device cpu was asked for"
    if shared:
        hint = "; device='mps' is there on request" if len(facts) == 1 and facts[0].has_mps else ""
        return "cpu", f"CPU, since {shared}{hint}"
    return "cuda", "every rank has a working GPU of its own" if len(facts) > 1 else "the GPU works"


def _why_no_nccl(
    facts: Sequence[DeviceFacts], chosen: str, *, device_reason: str, shared: str
) -> str:
    """Why NCCL cannot carry the data, "" when it can."""
    if chosen != "cuda":
        return f"NCCL moves GPU memory only and the device is {chosen}"
    if shared:
        return shared
    without = [rank for rank, fact in enumerate(facts) if not fact.has_nccl]
    return f"torch was built without NCCL on {_name(facts, without)}" if without else ""


def _why_no_gpu(facts: Sequence[DeviceFacts]) -> str:
    """Why not every rank can compute on a GPU, "" when all can."""
    without = [rank for rank, fact in enumerate(facts) if not fact.cuda_works]
    if not without:
        return ""
    problem = facts[without[0]].cuda_problem
    driver = [rank for rank in without if facts[rank].has_driver]
    warning = (
        f"; warning: {_name(facts, driver)} has a GPU driver, but this torch cannot use it "
        "(a CPU-only build, or a driver that does not match)"
        if driver
        else ""
    )
    return f"{_name(facts, without)} has no usable GPU ({problem}){warning}"


def _why_gpus_are_shared(facts: Sequence[DeviceFacts]) -> str:
    """Which ranks sit on one GPU, "" when each has its own."""
    owners: dict[tuple[str, str], int] = {}
    for rank, fact in enumerate(facts):
        first = owners.setdefault((fact.host, fact.cuda_uuid), rank)
        if first != rank:
            return f"ranks {first} and {rank} share GPU {fact.cuda_index} of {fact.host}"
    return ""


def _name(facts: Sequence[DeviceFacts], ranks: Sequence[int]) -> str:
    """'every rank' or 'rank 1 (hostB)' or 'ranks 1, 3 (hostB)'."""
    if len(ranks) == len(facts):
        return "every rank" if len(facts) > 1 else facts[0].host
    hosts = ", ".join(dict.fromkeys(facts[rank].host for rank in ranks))
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(map(str, ranks))} ({hosts})"
