"""Ranks that can talk already become ranks that share memory, all of them or none."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from llama.errors import HardwareError, LlamaError
from llama.parallel.comm import Communicator
from llama.parallel.liveness.failure import FailureRecord
from llama.parallel.shm.communicator import ShmCommunicator
from llama.parallel.shm.layout import SLOT_BYTES, SegmentLayout, ring_bytes_for
from llama.parallel.shm.peers import process_start
from llama.parallel.shm.segment import Segment

_NOTE_BYTES = 2048
_MAX_REASON = 400
_TRIAL_S = 30.0


def connect(
    group: Communicator,
    *,
    axis: str,
    timeout_s: float,
    failure: FailureRecord | None = None,
    global_ranks: tuple[int, ...] | None = None,
    native: bool | None = None,
    host_ranks: int = 1,
    ring_bytes: int | None = None,
    is_named: bool = False,
) -> ShmCommunicator:
    """A communicator of the ranks of `group`, which carries the arrangements. Collective.

    `global_ranks` are the job's numbers of these ranks. `host_ranks` is how many ranks of any axis
    this host has: where they outnumber its cores, nobody spins. `ring_bytes` (a multiple of 4096)
    is what can be under way from one rank to another while neither waits. `is_named` begins with a
    file in /dev/shm, to which the others fall back.

    Raises HardwareError, on all ranks, with the reason of the first one that cannot.
    """
    layout = SegmentLayout(group.size, SLOT_BYTES, ring_bytes or ring_bytes_for(group.size))
    segment, notes = _map(group, layout, is_named=is_named)
    comm: ShmCommunicator | None = None
    try:
        reason = _first_reason(notes)
        if not reason:
            cores = set[int]().union(*(note["cores"] for note in notes))
            assert segment is not None
            comm = ShmCommunicator(
                segment,
                axis=axis,
                rank=group.rank,
                global_ranks=global_ranks or tuple(range(group.size)),
                timeout_s=min(timeout_s, _TRIAL_S),
                failure=failure,
                peers=[_watchable(note) for note in notes],
                native=native,
                is_crowded=max(host_ranks, group.size) > len(cores),
            )
            reason = _first_reason(_exchange(group, {"error": _trial(comm)}))
    except BaseException:
        if comm is not None:
            comm.close()
        raise
    if reason or comm is None:
        if comm is not None:
            comm.close()
        raise HardwareError(f"no shared memory for the {axis} axis: {reason}")
    comm.timeout_s = timeout_s
    return comm


def _map(
    group: Communicator, layout: SegmentLayout, *, is_named: bool
) -> tuple[Segment | None, list[dict[str, Any]]]:
    """This rank's mapping, and what every rank says of its own."""
    segment: Segment | None = None
    offer: dict[str, Any] = {}
    if group.rank == 0:
        try:
            segment = Segment.create(layout, is_named=is_named)
            offer = {"path": segment.path, "nonce": segment.nonce.hex()}
        except HardwareError as error:
            offer = {"error": str(error)[:_MAX_REASON]}
    try:
        offer = _exchange(group, offer)[0]
        reason = offer.get("error", "")
        if not reason and group.rank != 0:
            try:
                nonce = bytes.fromhex(offer["nonce"])
                segment = Segment.attach(offer["path"], layout, nonce=nonce)
            except HardwareError as error:
                reason = str(error)
        notes = _exchange(group, _about_this_process(reason))
    finally:
        if segment is not None:
            segment.seal()
    if _first_reason(notes) and not is_named:
        return _map(group, layout, is_named=True)
    return segment, notes


def _about_this_process(reason: str) -> dict[str, Any]:
    pid = os.getpid()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return {
        "error": reason[:_MAX_REASON],
        "pid": pid,
        "start": process_start(pid),
        "cores": cores[:128],
    }


def _watchable(note: dict[str, Any]) -> int:
    """The pid, where it means the same process here as there."""
    return int(note["pid"]) if process_start(note["pid"]) == note["start"] != 0 else 0


def _trial(comm: ShmCommunicator) -> str:
    """One sum: why it cannot be, or nothing."""
    try:
        total = comm.all_reduce(torch.tensor([comm.rank + 1.0])).item()
    except LlamaError as error:
        return str(error)[:_MAX_REASON]
    expected = comm.size * (comm.size + 1) / 2
    return "" if total == expected else f"a test sum gave {total}, not {expected}"


def _first_reason(notes: list[dict[str, Any]]) -> str:
    for rank, note in enumerate(notes):
        if note["error"]:
            return f"rank {rank} of {len(notes)}: {note['error']}"
    return ""


def _exchange(group: Communicator, note: dict[str, Any]) -> list[dict[str, Any]]:
    """Everybody's note, in rank order."""
    text = json.dumps(note).encode().ljust(_NOTE_BYTES)
    everybody = group.all_gather(torch.frombuffer(bytearray(text), dtype=torch.uint8), dim=0)
    rows = everybody.view(group.size, _NOTE_BYTES)
    return [json.loads(bytes(row.tolist())) for row in rows]
