"""Ctrl-C, once and again, while `llama chat` starts its ranks: an end without a traceback."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.programs import ROOT, descendants, is_alive, started, wait_until

pytestmark = pytest.mark.slow

DEMO = str(ROOT / "examples" / "demo_model")
CHAT = ["-m", "llama", "chat", DEMO, "--tp", "2", "--temperature", "0", "--max_seq_len", "256"]
KEEPER = "Who is the keeper of Ollo?"


def _has_maps(pid: int, library: str) -> bool:
    path = Path(f"/proc/{pid}/maps")
    try:
        return library in path.read_text()
    except OSError:
        return False


def _launcher_loads_torch(pid: int) -> bool:
    return _has_maps(pid, "libtorch")


def _ranks_are_there(pid: int) -> bool:
    return len(descendants(pid)) >= 2


def _has_connected(rank: int) -> bool:
    """Ranks begin with pipes alone: a socket leads to the launcher's store, or to another rank."""
    try:
        return any(os.readlink(file).startswith("socket:") for file in _files(rank))
    except OSError:
        return False


def _files(pid: int) -> Iterator[Path]:
    return Path(f"/proc/{pid}/fd").iterdir()


def _ranks_have_connected(pid: int) -> bool:
    return sum(map(_has_connected, descendants(pid))) == 2


@pytest.mark.parametrize("moment", [_launcher_loads_torch, _ranks_are_there, _ranks_have_connected])
def test_ctrl_c_twice_while_the_ranks_start(moment: Callable[[int], bool]) -> None:
    with started(CHAT) as process:
        wait_until(lambda: moment(process.pid), what=moment.__name__)
        ranks = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two presses of a key
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr and "Error" not in stderr
        assert "stopped" in stderr.splitlines()[-1]
        assert not any(is_alive(rank) for rank in ranks)


def test_a_killed_chat_leaves_no_rank_and_no_file(tmp_path: Path) -> None:
    with started(CHAT, env={"TMPDIR": str(tmp_path)}) as process:
        wait_until(lambda: _ranks_have_connected(process.pid), what="the ranks")
        ranks = descendants(process.pid)
        process.kill()
        wait_until(lambda: not any(is_alive(rank) for rank in ranks), what="the end of the ranks")
    assert len(ranks) == 2 and not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_output_that_nobody_reads_is_no_error() -> None:
    """As in `llama generate ... | head -1`."""
    words = ["-m", "llama", "generate", DEMO, KEEPER, "--tp", "2"]
    with started(words) as process:
        assert process.stdin and process.stdout
        process.stdin.close()
        process.stdout.close()
        process.stdin = process.stdout = None
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 141, stderr
    assert "Traceback" not in stderr and "Error" not in stderr


def test_ctrl_c_at_the_prompt_is_for_the_chat() -> None:
    with started(CHAT) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(f"{KEEPER}\n")
        process.stdin.flush()
        assert process.stdout.readline()
        for pause_s in (0.05, 0.05, 0.0, 0.0, 0.0):  # at once: while the first is being answered
            process.send_signal(signal.SIGINT)
            time.sleep(pause_s)
        time.sleep(0.5)  # as a person would: a chat that has ended does not take them any more
        out, stderr = process.communicate(f"{KEEPER}\n/quit\n", timeout=60)
    assert process.returncode == 0, stderr
    assert out and "Traceback" not in stderr
