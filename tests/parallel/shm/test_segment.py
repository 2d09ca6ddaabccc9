"""Memory that leaves nothing behind, and too little of it, which is an error on all ranks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llama.errors import HardwareError
from llama.parallel.shm import connect
from llama.parallel.shm.layout import SegmentLayout
from llama.parallel.shm.peers import PeerProcesses, process_start
from llama.parallel.shm.segment import Segment
from tests.helpers.ranks import RankInfo, run_ranks
from tests.helpers.shm import both

LAYOUT = SegmentLayout(n_ranks=2, slot_bytes=4096, ring_bytes=4096)
NAMED = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def shm_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("llama-")}


def test_parts_do_not_overlap_and_keep_to_their_lines() -> None:
    for n in (2, 3, 8):
        layout = SegmentLayout(n_ranks=n, slot_bytes=8192, ring_bytes=4096)
        pairs = [(src, dst) for src in range(n) for dst in range(n)]
        parts = [(layout.header(r), 256) for r in range(n)]
        parts += [(layout.ring_header(*pair), 256) for pair in pairs]
        parts += [(layout.slot(r, parity), 8192) for r in range(n) for parity in (0, 1)]
        parts += [(layout.ring(*pair), 4096) for pair in pairs]
        parts += [(layout.nonce_offset, 16)]
        for (begin, length), (after, _) in pairwise(parts):
            assert begin % 256 == 0
            assert begin + length <= after
        assert parts[-1][0] + 16 <= layout.n_bytes


@NAMED
@pytest.mark.parametrize("is_named", [False, True])
def test_two_mappings_are_the_same_memory(is_named: bool) -> None:
    files, names = open_files(), shm_files()
    first = Segment.create(LAYOUT, is_named=is_named)
    second = Segment.attach(first.path, LAYOUT, nonce=first.nonce)
    first.memory[5] = 77
    assert second.memory[5] == 77
    for segment in (first, second, first):
        segment.seal()
    with pytest.raises(HardwareError, match="cannot map shared memory"):
        Segment.attach(first.path, LAYOUT, nonce=first.nonce)
    first.memory.close()
    second.memory.close()
    assert (open_files(), shm_files()) == (files, names)


def test_something_else_at_the_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(LAYOUT.n_bytes))
    (tmp_path / "short").write_bytes(b"x")
    for name in ("other", "short"):
        with pytest.raises(HardwareError, match="it is something else"):
            Segment.attach(str(tmp_path / name), LAYOUT, nonce=b"n" * 16)


def limited(info: RankInfo) -> tuple[str, int]:
    """No rank may make a file as large as is needed: rank 0, which makes it, cannot."""
    _, gloo = both(info, (0, 1))
    before = open_files()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    with pytest.raises(HardwareError) as caught:
        connect(gloo, axis="pp", timeout_s=5)
    assert gloo.all_reduce(torch.ones(1)).item() == 2.0
    return str(caught.value), open_files() - before


def test_too_little_memory_is_an_error_on_all_ranks() -> None:
    found = run_ranks(limited, 2)
    assert found[0] == found[1]
    message, n_left = found[0]
    assert message.startswith("no shared memory for the pp axis: rank 0 of 2: cannot have ")
    assert "MiB of shared memory for 2 ranks" in message
    assert "docker --shm-size" in message
    assert n_left == 0


def one_cannot(info: RankInfo) -> str:
    """Rank 1 has no room in its address space for it."""
    _, gloo = both(info, ())
    if info.rank == 1:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (4 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    with pytest.raises(HardwareError) as caught:
        connect(gloo, axis="tp", timeout_s=5, ring_bytes=1 << 26)
    return str(caught.value)


def test_one_rank_that_cannot_map_it_is_named_by_all() -> None:
    first, second = run_ranks(one_cannot, 2)
    assert first == second
    assert "rank 1 of 2: cannot map shared memory" in first


SMALL = """
from llama.errors import HardwareError
from llama.parallel.shm.layout import SegmentLayout
from llama.parallel.shm.segment import Segment
try:
    Segment.create(SegmentLayout(2, 65536, 65536), is_named=True)
except HardwareError as error:
    import os
    raise SystemExit(f"{len(os.listdir('/dev/shm'))} files; {error}")
"""


def test_a_small_dev_shm_is_an_error_and_no_bus_error() -> None:
    script = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, SMALL]
    probe = [*command[:4], "mount -t tmpfs none /dev/shm"]
    if subprocess.run(probe, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("0 files; cannot have 0.5 MiB of shared memory for 2 ranks")
    assert "docker --shm-size" in done.stderr


def come_and_go(info: RankInfo, is_named: bool) -> tuple[int, int]:
    """Open files and maps that are left once everything has been used and closed."""
    shm, gloo = both(info, (0,), is_named=is_named)
    shm.close()
    del shm
    before = open_files(), len(maps())
    for _ in range(5):
        shm = connect(gloo, axis="tp", timeout_s=5, is_named=is_named)
        work = shm.isend(torch.ones(2_000_000), 1 - shm.rank)
        shm.all_reduce(torch.ones(100_000))
        shm.recv(torch.empty(2_000_000), 1 - shm.rank)
        work.wait()
        shm.barrier()
        shm.close()
        del shm, work
    return open_files() - before[0], len(maps()) - before[1]


def maps() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "memfd:llama" in line or "/dev/shm/llama-" in line]


@NAMED
@pytest.mark.parametrize("is_named", [False, True])
def test_nothing_is_left_behind(is_named: bool) -> None:
    before = shm_files()
    assert run_ranks(come_and_go, 2, is_named) == [(0, 0), (0, 0)]
    assert shm_files() == before


def test_processes_that_are_there_gone_or_somebody_else() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        peers = PeerProcesses([os.getpid(), child.pid, 0])
        assert [peers.is_gone(rank) for rank in range(3)] == [False, False, False]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not buried
        assert process_start(child.pid) == 0
        assert [peers.is_gone(rank) for rank in range(3)] == [False, True, False]
        peers.close()
        peers.close()
        assert not peers.is_gone(1)
    finally:
        child.kill()
        child.communicate()
