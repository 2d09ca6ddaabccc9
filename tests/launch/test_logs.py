"""What ranks write, on the console and in files: whole lines, every byte, and never a hold-up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.logs import RankOutput
from llama.errors import UsageError
from tests.helpers.programs import is_alive, wait_until
from tests.launch.test_supervisor import SLEEP, outcome, pid_in, supervised

Capture = pytest.CaptureFixture[bytes]


class Ranks:
    """The writing ends of the streams of two ranks."""

    def __init__(self, *, prefix: bool = True, log_dir: Path | None = None) -> None:
        self.said: list[str] = []
        self.output = RankOutput((0, 1), prefix=prefix, log_dir=log_dir, say=self.said.append)
        streams = [fd for rank in (0, 1) for fd in self.output.streams(rank)]
        self.fds = [fd for fd in streams if fd is not None]
        self.output.start()

    def write(self, rank: int, data: bytes, *, stream: int = 1) -> None:
        fd = self.fds[2 * rank + stream - 1]
        while data:
            data = data[os.write(fd, data) :]

    def end(self) -> None:
        for fd in self.fds:
            os.close(fd)
        wait_until(self.output.finish, what="all that was written")


@pytest.fixture
def shown(capfdbinary: Capture) -> Callable[[bytes], None]:
    """Wait until exactly these bytes have come to stdout since the last call."""

    def wait_for(expected: bytes) -> None:
        seen = b""

        def is_there() -> bool:
            nonlocal seen
            seen += capfdbinary.readouterr().out
            return len(seen) >= len(expected)

        wait_until(is_there, what=str(expected))
        assert seen == expected

    return wait_for


def test_every_line_says_who_wrote_it(capfdbinary: Capture) -> None:
    ranks = Ranks()
    ranks.write(0, b"a\n\nb\r50 %\r100 %\n")
    ranks.write(1, b"x\nlast", stream=2)
    ranks.end()
    out, err = capfdbinary.readouterr()
    assert out == b"[rank 0] a\n[rank 0] \n[rank 0] b\r50 %\r100 %\n"
    assert err == b"[rank 1] x\n[rank 1] last"


def test_a_line_that_says_so_already_stays(capfdbinary: Capture) -> None:
    ranks = Ranks()
    ranks.write(1, b"[rank 1 hostB] a\n[rank 1] b\n[rank 10 hostB] c\n[rank 0 hostA] d\n")
    ranks.end()
    assert capfdbinary.readouterr().out == (
        b"[rank 1 hostB] a\n[rank 1] b\n[rank 1] [rank 10 hostB] c\n[rank 1] [rank 0 hostA] d\n"
    )


def test_a_prompt_is_seen_before_its_line_ends(shown: Callable[[bytes], None]) -> None:
    ranks = Ranks()
    ranks.write(0, b"name? ")
    shown(b"[rank 0] name? ")
    ranks.write(0, b"Bob\nhalf")
    shown(b"Bob\n[rank 0] half")
    ranks.write(1, b"whole\n")
    shown(b"\n[rank 1] whole\n")
    ranks.write(0, b" rest\n")
    shown(b"[rank 0]  rest\n")
    ranks.end()


@pytest.mark.parametrize("prefix", [True, False])
def test_no_byte_is_changed(capfdbinary: Capture, tmp_path: Path, prefix: bool) -> None:
    data = bytes(value for value in range(256) if value != ord("\n")) * 4096 + b"\n"
    ranks = Ranks(prefix=prefix, log_dir=tmp_path)
    writer = threading.Thread(target=ranks.write, args=(0, data))
    writer.start()
    writer.join(60)
    ranks.end()
    assert capfdbinary.readouterr().out == (b"[rank 0] " if prefix else b"") + data
    assert (tmp_path / "rank-0.log").read_bytes() == data


def test_log_files_have_both_streams_and_go_on_growing(
    capfdbinary: Capture, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "logs"
    for text in (b"first\n", b"second\n"):
        ranks = Ranks(log_dir=folder)
        ranks.write(0, text)
        ranks.write(1, text, stream=2)
        ranks.end()
    assert (folder / "rank-0.log").read_bytes() == b"first\nsecond\n"
    assert (folder / "rank-1.log").read_bytes() == b"first\nsecond\n"
    assert capfdbinary.readouterr().out == b"[rank 0] first\n[rank 0] second\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file of a full disk here")
def test_a_full_disk_is_one_warning(capfdbinary: Capture, tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    ranks = Ranks(log_dir=tmp_path)
    for _ in range(3):
        ranks.write(0, b"on\n")
        ranks.write(1, b"on\n")
    ranks.end()
    (line,) = ranks.said
    assert "No space left on device" in line
    assert capfdbinary.readouterr().out.count(b"on\n") == 6


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write log files in .*file/logs: Not a directory"):
        Ranks(log_dir=tmp_path / "file" / "logs")


def test_ranks_have_the_launchers_own_streams_when_nothing_is_to_be_done() -> None:
    output = RankOutput((0, 1), prefix=False, say=lambda line: None)
    assert output.streams(0) == output.streams(1) == (None, None)


@pytest.mark.parametrize("prefix", [True, False])
def test_output_that_nobody_reads_ends_the_job_in_silence(tmp_path: Path, prefix: bool) -> None:
    write = """
try:
    while True: os.write(1, b"more\\n")
except BrokenPipeError:
    sys.exit(141)
"""
    with supervised(tmp_path, write, SLEEP, prefix=prefix) as launcher:
        assert launcher.stdout and launcher.stderr
        assert launcher.stdout.readline().endswith("more\n")
        launcher.stdout.close()
        launcher.stdout = None
        _, stderr = launcher.communicate(timeout=60)
    assert stderr == ""
    found = outcome(tmp_path)
    assert found["exit_code"] == 141 and found["announced"] == []
    assert found["ends"] == {"0": 141, "1": -15}


@pytest.mark.parametrize("does", ["time.sleep(600)", "print(end='.', flush=True)"])
def test_a_stranger_that_holds_a_pipe_holds_up_nobody(tmp_path: Path, does: str) -> None:
    """A process in a session of its own is not the rank's any more, but has its stdout."""
    leave = f"""
import subprocess
print("bye", flush=True)
code = "import time\\nwhile True: {does}; time.sleep(0.01)"
child = subprocess.Popen([sys.executable, "-SEs", "-c", code],
                         start_new_session=True, stderr=subprocess.DEVNULL)
publish("grandchild", str(child.pid))
"""
    with supervised(tmp_path, leave, prefix=True, until=["grandchild"]) as launcher:
        assert launcher.stdout
        launcher.wait(timeout=60)
        if "sleep(600" in does:
            assert is_alive(pid_in(tmp_path, "grandchild"))
        assert launcher.stdout.readline() == "[rank 0] bye\n"
    assert outcome(tmp_path)["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.nightly
def test_a_console_that_nobody_reads_does_not_hold_up_a_failure(tmp_path: Path) -> None:
    write = "publish('writing')\nwhile True: print('more' * 1000)"
    fail = "while not os.path.exists('writing'): time.sleep(0.01)\nsys.exit(65)"
    with supervised(tmp_path, write, fail, prefix=True) as launcher:
        assert launcher.wait(timeout=60) == 0
    assert outcome(tmp_path)["exit_code"] == 65
