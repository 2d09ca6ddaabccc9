"""Real processes that end in an error: what they print, what they leave behind, how they exit."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from llama.errors import CheckpointError, LlamaError
from llama.parallel.liveness.failure import exit_code
from tests.helpers.programs import run, started

pytestmark = pytest.mark.slow

DEADLINE_S = 60
HOST = socket.gethostname()
MEET = """
import sys, threading, time
import torch
import torch.distributed as dist
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
from llama.errors import CheckpointError
from llama.parallel.context import initialize
context = initialize()
"""


def run_two(tmp_path: Path, program: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of both ranks of `program`; they meet in a file."""
    file = str(tmp_path / "rendezvous")
    # the debug mode of other tests makes torch print what it sees on the way
    env = {"TORCH_DISTRIBUTED_DEBUG": "OFF"}
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(started(["-c", MEET + program, str(rank), file], env=env))
            for rank in range(2)
        ]
        texts = [rank.communicate(timeout=DEADLINE_S) for rank in ranks]
        return [(rank.returncode, *text) for rank, text in zip(ranks, texts, strict=True)]


def test_one_of_our_errors_is_its_message_and_the_peer_knows_the_cause(tmp_path: Path) -> None:
    program = """
print("before")
if rank == 1:
    raise CheckpointError("shard 1\\nis broken")
context.tp.all_reduce(torch.zeros(1))
"""
    (code, out, err), failed = run_two(tmp_path, program)
    own_lines = f"[rank 1 {HOST}] CheckpointError: shard 1\n[rank 1 {HOST}] is broken\n"
    assert failed == (CheckpointError.exit_code, "before\n", own_lines)
    assert (code, out) == (CheckpointError.exit_code, "before\n")
    (line,) = err.splitlines()
    assert line.startswith(f"[rank 0 {HOST}] PeerLostError: tp all_reduce with rank 1: a rank is")
    assert f"first failure: rank 1 ({HOST}, pid" in line
    assert line.endswith("in IDLE (running): CheckpointError: shard 1 is broken")


@pytest.mark.nightly
def test_output_that_nobody_reads_is_no_failure(tmp_path: Path) -> None:
    program = """
import os
if rank == 0:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    print("x" * 100_000, flush=True)
try:
    context.tp.all_reduce(torch.zeros(1))
except Exception:
    print("rank 1 goes on")
    os._exit(0)
"""
    (code, _, err), other = run_two(tmp_path, program)
    assert (code, err) == (141, "")
    assert other == (0, "rank 1 goes on\n", "")


def test_any_other_error_has_a_traceback_with_the_rank_on_every_line(tmp_path: Path) -> None:
    program = """
if rank == 1:
    raise KeyError("nothing of ours")
context.world.barrier()
"""
    _, (code, _, err) = run_two(tmp_path, program)
    lines = err.splitlines()
    assert code == 70
    assert lines[0] == f"[rank 1 {HOST}] Traceback (most recent call last):"
    assert lines[-1] == f"[rank 1 {HOST}] KeyError: 'nothing of ours'"
    assert all(line.startswith(f"[rank 1 {HOST}] ") for line in lines)


@pytest.mark.nightly
def test_nothing_holds_up_the_end(tmp_path: Path) -> None:
    """Neither a thread that never ends nor an exit handler that waits."""
    program = """
import atexit
atexit.register(time.sleep, 600)
threading.Thread(target=time.sleep, args=(600,)).start()
raise CheckpointError(f"rank {rank}")
"""
    for rank, (code, _, err) in enumerate(run_two(tmp_path, program)):
        assert code == CheckpointError.exit_code
        assert f"CheckpointError: rank {rank}" in err


@pytest.mark.nightly
def test_the_programs_own_hook_is_called_first(tmp_path: Path) -> None:
    program = """
context.close()
sys.excepthook = lambda kind, error, trace: print("theirs:", error)
context = initialize()
raise CheckpointError("ours")
"""
    for rank, (code, out, err) in enumerate(run_two(tmp_path, program)):
        assert (code, out) == (CheckpointError.exit_code, "theirs: ours\n")
        assert f"[rank {rank} {HOST}] CheckpointError: ours" in err


@pytest.mark.parametrize("ending", ["", "context.close()", "sys.exit(0)"])
def test_a_good_end_is_silent(tmp_path: Path, ending: str) -> None:
    """Whether or not the program cleans up."""
    program = f"context.world.barrier()\n{ending}"
    assert run_two(tmp_path, program) == [(0, "", "")] * 2


@pytest.mark.nightly
def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    found = run_two(tmp_path, "context.world.barrier()\nraise KeyboardInterrupt")
    for rank, (code, _, err) in enumerate(found):
        assert code == 128 + signal.SIGINT
        assert err == f"[rank {rank} {HOST}] interrupted\n"


@pytest.mark.parametrize("kind", [LlamaError, *LlamaError.__subclasses__()])
def test_every_error_of_ours_has_its_exit_code(kind: type[LlamaError]) -> None:
    assert exit_code(kind("x")) == kind.exit_code


def test_a_foreign_error_is_our_own_fault() -> None:
    assert exit_code(ValueError("x")) == 70


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROGRAM = """
import os, sys
import torch
from llama.errors import CheckpointError
from llama.parallel.context import initialize
context = initialize()
total = int(context.tp.all_reduce(torch.tensor([context.rank + 1])))
line = f"{context.layout} {context.rank} {context.local_world_size} {context.backend.name} {total}"
os.write(1, f"{line}\\n".encode())
if context.rank == 1 and "fail" in sys.argv:
    raise CheckpointError("broken")
context.world.barrier()
"""


@pytest.mark.nightly
def test_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = run([*TORCHRUN, str(script)])
    assert done.returncode == 0, done.stderr
    grid = "ParallelLayout(tp_size=2, pp_size=1, dp_size=1)"
    assert sorted(done.stdout.splitlines()) == [f"{grid} {rank} 2 gloo 3" for rank in (0, 1)]


@pytest.mark.nightly
def test_a_failure_under_torchrun_reaches_its_report(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = run([*TORCHRUN, str(script), "fail"])
    assert done.returncode == 1
    assert f"[rank 1 {HOST}] CheckpointError: broken" in done.stderr
    assert f"exitcode  : {CheckpointError.exit_code} " in done.stderr
