"""Progress is for people: it counts, names who stalls, and never stands in the way of a load."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from llama.checkpoint import open_checkpoint
from llama.checkpoint.files.data_file import DataFile
from llama.checkpoint.loading.loader import load
from llama.checkpoint.loading.progress import Progress, Row, StallWatch
from llama.errors import RankTimeoutError
from llama.log import get_logger
from llama.models.decoder import tensor_names
from llama.parallel.context import ParallelContext
from llama.parallel.progress import Board
from tests.helpers.checkpoints import random_model, tiny_config, write_meta
from tests.helpers.ranks import run_layout
from tests.helpers.stage_weights import stage_at

BUSY = Row("box", 3, 80, 10, 100, is_waiting=False)


def test_a_rank_without_new_bytes_is_named_once_until_it_goes_on() -> None:
    watch = StallWatch(30)
    other = replace(BUSY, nbytes=50)
    assert watch.look([BUSY, other], now=0) == []
    assert watch.look([BUSY, replace(other, nbytes=51)], now=29) == []
    line = "loading: rank 0 (box): 3/80 tensors, 0 B/s for 31 s"
    assert watch.look([replace(BUSY, tick=9), replace(other, nbytes=52)], now=31) == [line]
    assert watch.look([BUSY, replace(other, nbytes=53)], now=45) == []
    assert watch.look([replace(BUSY, nbytes=11), replace(other, nbytes=54)], now=50) == []
    assert len(watch.look([replace(BUSY, nbytes=11), replace(other, nbytes=55)], now=80)) == 1


def test_a_rank_that_waits_for_others_is_named_only_when_it_does_not_run() -> None:
    watch = StallWatch(30)
    waiting = replace(BUSY, is_waiting=True)
    for second in range(0, 100, 10):
        assert watch.look([replace(waiting, tick=second)], now=second) == []
    assert len(watch.look([replace(waiting, tick=90)], now=120)) == 1


def test_a_rank_that_never_writes_is_named() -> None:
    watch = StallWatch(30)
    assert watch.look([Row()], now=0) == []
    assert watch.look([Row()], now=30) == [
        "loading: rank 0 (not heard of): 0/0 tensors, 0 B/s for 30 s"
    ]


def test_ranks_read_each_other_on_a_board(tmp_path: Path) -> None:
    stores = [dist.FileStore(str(tmp_path / "store"), 2) for _ in range(2)]
    for text in ("first", "second"):  # a new board is empty
        boards = [Board(store, rank=rank, size=2) for rank, store in enumerate(stores)]
        boards[0].publish(text)
        assert [board.rows() for board in boards] == [[text, ""], [text, ""]]
    boards[1].publish("also")
    assert boards[0].rows() == ["second", "also"]


def test_a_board_without_a_store_has_the_own_row() -> None:
    board = Board(None, rank=0, size=1)
    assert board.rows() == [""]
    board.publish("here")
    assert board.rows() == ["here"]


def load_and_stop(context: ParallelContext, folder: str) -> list[str]:
    """Rank 1 is stopped in the middle of a read; the warnings of this rank."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    get_logger().addHandler(Lines())
    reader = open_checkpoint(folder)
    stage = stage_at(reader.config, 2, 1, context.rank)
    whole = DataFile.read_into

    def stopping(self: DataFile, buffer: memoryview, offset: int) -> None:
        DataFile.read_into = whole  # type: ignore[method-assign]
        time.sleep(0.8)  # so that others have heard of this rank
        subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        whole(self, buffer, offset)

    if context.rank == 1:
        DataFile.read_into = stopping  # type: ignore[method-assign]
    with Progress(context.board(), stall_s=1.0) as progress, context.together("loading"):
        load(
            stage,
            reader,
            device="cpu",
            all_names=tensor_names(reader.config),
            local=context.local,
            progress=progress,
        )
    return lines


@pytest.mark.nightly
def test_a_stopped_rank_is_named_by_rank_0_and_the_load_goes_on(tmp_path: Path) -> None:
    config = tiny_config()
    write_meta(tmp_path, config, random_model(config))
    lines, silent = run_layout(load_and_stop, str(tmp_path), tp=2)
    stalls = [line for line in lines if "0 B/s" in line]
    assert len(stalls) == 1
    assert "loading: rank 1 (" in stalls[0]
    assert "/30 tensors, 0 B/s for 1 s" in stalls[0]
    assert not silent


def load_what_never_comes(context: ParallelContext, folder: str) -> None:
    """Rank 1's reads do not return, while its main thread goes on looking after the others."""
    reader = open_checkpoint(folder)
    stage = stage_at(reader.config, 1, 2, context.rank)
    if context.rank == 1:
        DataFile.read_into = lambda *_: time.sleep(3)  # type: ignore[method-assign]
    with Progress(context.board(), limit_s=0.6) as progress, context.together("loading"):
        load(
            stage,
            reader,
            device="cpu",
            all_names=tensor_names(reader.config),
            local=context.local,
            progress=progress,
        )


@pytest.mark.slow
def test_a_file_that_does_not_answer_is_given_up_by_all(tmp_path: Path) -> None:
    config = tiny_config()
    write_meta(tmp_path, config, random_model(config))
    other, stuck = run_layout(load_what_never_comes, str(tmp_path), pp=2, expect_error=True)
    words = "no byte of consolidated.00.pth came for "
    for error in (stuck, other):
        assert type(error) is RankTimeoutError and words in str(error)
    assert "rank 1 (" in str(other) and "failed while loading" in str(other)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with Progress(Board(None, rank=0, size=1)) as progress:
            progress.expect(tensors=2, nbytes=2_000_000)
            progress.add(tensors=1, nbytes=1_000_000)
            time.sleep(1.2)
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "loading" in shown
    assert "1.0/2.0 MB" in shown


def test_without_a_terminal_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(Board(None, rank=0, size=1)) as progress:
        progress.expect(tensors=1, nbytes=10)
        time.sleep(0.7)
    assert capfd.readouterr() == ("", "")


class CountedStore:
    """A store that remembers what it was asked, each call a request."""

    def __init__(self) -> None:
        self.store = dist.HashStore()
        self.asked: list[tuple[str, object]] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        def ask(*args: object) -> object:
            self.asked.append((name, args[0]))
            answer: object = getattr(self.store, name)(*args)
            return answer

        return ask


def test_only_rank_0_reads_what_the_others_write() -> None:
    stores = [CountedStore() for _ in range(2)]
    boards = [Board(store, rank=rank, size=8) for rank, store in enumerate(stores)]  # type: ignore[arg-type]
    for board, store in zip(boards, stores, strict=True):
        board.publish("here")  # so that the place of the board is known
        store.asked.clear()
        with Progress(board):
            time.sleep(1.2)
    assert any("/1" in str(key) for _, key in stores[0].asked)
    reads = {str(key) for name, key in stores[1].asked if name != "set"}
    assert len(reads) == 1


def test_a_failure_is_heard_by_every_rank() -> None:
    store = dist.HashStore()
    with ExitStack() as stack:
        boards = [Board(store, rank=rank, size=3) for rank in range(3)]
        ranks = [stack.enter_context(Progress(board)) for board in boards]
        assert not any(progress.failed_elsewhere for progress in ranks)
        ranks[2].fail()
        end = time.monotonic() + 20
        while not all(progress.failed_elsewhere for progress in ranks):
            assert time.monotonic() < end
            time.sleep(0.05)


class DeadStore:
    """A store whose host is gone: everything fails."""

    def __getattr__(self, name: str) -> None:
        raise RuntimeError("connection refused")


def test_a_dead_store_is_no_trouble() -> None:
    store: dist.Store = DeadStore()  # type: ignore[assignment]
    board = Board(store, rank=0, size=2)
    board.publish("here")
    board.raise_flag()
    assert board.rows() == ["here", ""]
    assert not board.has_flag()
