"""What is wrong or doubtful in what a preflight found, what to do about it, and the exit status.

Pure judgement: every rank that has the same facts comes to the same verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.env import GLOO_INTERFACE, THREADS
from launch.preflight.doors import Visit
from launch.preflight.hosts import Host
from launch.preflight.links import WrongResults
from llama.errors import HardwareError, PeerLostError, RankMismatchError, RankTimeoutError
from llama.parallel.agreement import differences

MAX_CLOCK_S = 1.0
MIN_SHARED_BYTES = 64 * 1024**2
FILES_PER_PEER = 8
"""Connections from a rank to each other one: every axis and the control groups have their own."""
OTHER_FILES = 64

_MOST_SHOWN = 8
_GRAVEST_FIRST = tuple(
    kind.exit_code for kind in (RankTimeoutError, RankMismatchError, HardwareError, PeerLostError)
)


@dataclass(frozen=True)
class Finding:
    """One line for the user; `exit_code` 0 makes it a warning."""

    text: str
    exit_code: int = 0


def exit_code(findings: Sequence[Finding]) -> int:
    """That of the gravest finding: what comes first may be the cause of the others."""
    codes = {finding.exit_code for finding in findings} - {0}
    return next((code for code in _GRAVEST_FIRST if code in codes), max(codes, default=0))


def judge_hosts(hosts: Sequence[Host]) -> list[Finding]:
    """Versions that differ fail; what only makes a job slow or fragile is a warning."""
    ranks = sorted((rank for host in hosts for rank in host.ranks), key=lambda rank: rank.rank)
    found = [Finding(text) for host in hosts for text in _doubts(host, world_size=len(ranks))]
    if any(rank.must_match != ranks[0].must_match for rank in ranks):
        replies = [{"host": rank.host, "values": rank.must_match} for rank in ranks]
        found.append(Finding(differences(replies), RankMismatchError.exit_code))
    return found


def judge_visits(visits: Sequence[Visit], names: Mapping[int, str]) -> list[Finding]:
    """Doors that somebody could not get through fail. `names` has the host of each rank."""
    found = [_closed(visit, names) for visit in visits if visit.problem]
    if len(found) > _MOST_SHOWN:
        more = f"and {len(found) - _MOST_SHOWN} more ways between hosts are closed"
        found[_MOST_SHOWN:] = [Finding(more, exit_code(found[_MOST_SHOWN:]))]
    clocks = {visit.door: visit.clock_ahead_s for visit in visits if visit.visitor == 0}
    for rank, ahead_s in clocks.items():
        if ahead_s is not None and abs(ahead_s) > MAX_CLOCK_S:
            word = "ahead of" if ahead_s > 0 else "behind"
            found.append(
                Finding(
                    f"the clock of {names[rank]} is {abs(ahead_s):.1f} s {word} that of {names[0]};"
                    " times in logs do not compare: run an NTP client on both"
                )
            )
    return found


def judge_links(wrong: Sequence[WrongResults], names: Mapping[int, str]) -> list[Finding]:
    """Wrong results fail. `names` has the host of each rank."""
    return [
        Finding(
            f"rank {case.seen_by} ({names[case.seen_by]}) got {case.n_wrong} wrong result(s) over "
            f"{case.axis} with {_others(case, names)}; check the memory and the network cards of "
            "these hosts",
            PeerLostError.exit_code,
        )
        for case in wrong
    ]


def _closed(visit: Visit, names: Mapping[int, str]) -> Finding:
    visitor, door = (f"rank {rank} ({names[rank]})" for rank in (visit.visitor, visit.door))
    if visitor == door:
        return Finding(f"{door}: {visit.problem}", HardwareError.exit_code)
    return Finding(
        f"{visitor} cannot reach {door} at {visit.problem}; open all TCP ports between these "
        f"hosts, or name the interface that they share in {GLOO_INTERFACE}",
        PeerLostError.exit_code,
    )


def _others(case: WrongResults, names: Mapping[int, str]) -> str:
    return ", ".join(f"rank {rank} ({names[rank]})" for rank in case.ranks if rank != case.seen_by)


def _doubts(host: Host, *, world_size: int) -> Iterator[str]:
    n_ranks = len(host.ranks)
    if any(rank.has_driver and rank.device_problem for rank in host.ranks):
        problem = next(rank.device_problem for rank in host.ranks if rank.device_problem)
        yield (
            f"{host.name} has a GPU driver that torch cannot use ({problem}): a torch without GPU "
            "support, or a driver that does not match it"
        )
    shared = [rank.shm_free_bytes for rank in host.ranks if rank.shm_free_bytes is not None]
    if shared and min(shared) < MIN_SHARED_BYTES:
        yield (
            f"{host.name} has {min(shared) / 1024**2:.0f} MiB free in /dev/shm, less than "
            f"{MIN_SHARED_BYTES // 1024**2}: give the container more shared memory"
        )
    if n_ranks > host.n_cores:
        yield (
            f"{n_ranks} ranks share {host.n_cores} core(s) of {host.name}: each waits for all the "
            "others at every layer, so start fewer there"
        )
    elif host.n_threads > host.n_cores:
        yield (
            f"{host.n_threads} threads of {n_ranks} rank(s) share {host.n_cores} core(s) of "
            f"{host.name}: set {THREADS} to {host.n_cores // n_ranks}"
        )
    limits = [rank.max_open_files for rank in host.ranks if rank.max_open_files is not None]
    needed = FILES_PER_PEER * (world_size - 1) + OTHER_FILES
    if limits and min(limits) < needed:
        yield (
            f"{host.name} lets a process open {min(limits)} files, and {world_size} ranks may need "
            f"{needed}: raise it with `ulimit -n {needed}`"
        )
    if kills := max(rank.n_oom_kills for rank in host.ranks):
        yield (
            f"{host.name} has killed {kills} process(es) of this container for memory since it "
            "started: raise its memory limit or use more hosts"
        )
