"""How far a load is: each rank counts, rank 0 shows a bar to a terminal and names ranks that stall.

All of it happens in a thread of its own that the load never waits for. It knows numbers and names
of files only: what they stand for is the loader's business.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType

from llama.errors import RankTimeoutError
from llama.log import get_logger
from llama.parallel.liveness.beat import Stopwatch
from llama.parallel.progress import Board

STALL_S = 30.0
_TICK_S = 0.5
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Row:
    """What one rank has done of what it has to do. `is_waiting`: for other ranks, not for bytes.

    `tick` grows as long as the process runs at all.
    """

    host: str = ""
    tensors: int = 0
    all_tensors: int = 0
    nbytes: int = 0
    all_bytes: int = 0
    is_waiting: bool = True
    tick: int = 0


class Progress:
    """Counters of this rank, published from a thread between `__enter__` and `__exit__`.

    A rank that gets no bytes for `stall_s` seconds is named in the log of rank 0, once until it
    goes on; after `limit_s` it gives up. `at_file` is told the name of each file that is about to
    be read, from any thread.
    """

    def __init__(
        self,
        board: Board | None = None,
        *,
        stall_s: float = STALL_S,
        limit_s: float = math.inf,
        at_file: Callable[[str], object] | None = None,
    ) -> None:
        self._board = board
        self._limit_s = limit_s
        self._at_file = at_file
        self._file = "the first file"
        self._pace = Stopwatch()
        self._looked_at_s = time.monotonic()
        self._watch = StallWatch(stall_s)
        self._row = Row(host=socket.gethostname())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failed = threading.Event()
        self._failed_elsewhere = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llama-load-progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._board is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._board is not None:
            self._thread.join(_PATIENCE_S)  # the store may not answer any more

    @property
    def failed_elsewhere(self) -> bool:
        """Whether some rank has called `fail`, as far as known here."""
        return self._failed_elsewhere.is_set()

    def expect(self, *, tensors: int, nbytes: int) -> None:
        """What there is to do in all."""
        with self._lock:
            self._row = replace(self._row, all_tensors=tensors, all_bytes=nbytes, is_waiting=False)

    def read(self, file: str) -> None:
        """Say that some of `file` is read next. From any thread."""
        self._file = file
        if self._at_file is not None:
            self._at_file(file)

    def add(self, *, tensors: int = 0, nbytes: int = 0) -> None:
        """Count what has just been done. From any thread."""
        with self._lock:
            row = self._row
            self._row = replace(row, tensors=row.tensors + tensors, nbytes=row.nbytes + nbytes)

    def check_pace(self) -> None:
        """Raises RankTimeoutError when this rank has got nothing for too long.

        To be called every second or more often while there are bytes to come: pauses of the whole
        process are not counted.
        """
        now_s = time.monotonic()
        passed_s = min(now_s - self._looked_at_s, 1.0)
        self._looked_at_s = now_s
        idle_s = self._pace.observe(self._row.nbytes, passed_s)
        if idle_s >= self._limit_s:
            raise RankTimeoutError(
                f"no byte of {self._file} came for {idle_s:.1f} s (limit {self._limit_s:g}; "
                "LLAMA_LOAD_TIMEOUT_S): the disk or the network folder that it lies on is stuck"
            )

    def wait(self, is_waiting: bool) -> None:
        """Say whether it is other ranks that this one waits for."""
        with self._lock:
            self._row = replace(self._row, is_waiting=is_waiting)

    def fail(self) -> None:
        """Have the other ranks stop as soon as they hear of it."""
        self._failed.set()

    @contextmanager
    def failing_for_all(self) -> Iterator[None]:
        """Call `fail` when the body raises."""
        try:
            yield
        except BaseException:
            self.fail()
            raise

    def _run(self) -> None:
        assert self._board is not None
        is_first = self._board.rank == 0
        bar = _Bar() if is_first and sys.stderr.isatty() else None
        self._publish(self._board)
        while not self._ended.wait(_TICK_S):
            self._publish(self._board)
            if self._failed.is_set():
                self._board.raise_flag()
            if self._board.has_flag():
                self._failed_elsewhere.set()
            if is_first:
                self._look(self._board, bar)
        if bar is not None:
            bar.close()

    def _look(self, board: Board, bar: _Bar | None) -> None:
        """At everybody's row. One rank's task: the store serves the whole job."""
        rows = [_parsed(text) for text in board.rows()]
        for line in self._watch.look(rows, now=time.monotonic()):
            get_logger().warning(line)
        if bar is not None:
            bar.show(rows)

    def _publish(self, board: Board) -> None:
        with self._lock:
            self._row = row = replace(self._row, tick=self._row.tick + 1)
        board.publish(json.dumps(asdict(row)))


class StallWatch:
    """Tells which ranks make no progress, from what all ranks say again and again."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since: dict[int, tuple[Row, float]] = {}
        self._named: set[int] = set()

    def look(self, rows: Sequence[Row], *, now: float) -> list[str]:
        """A line for each rank that has just become a stalled one; `now` is in seconds."""
        lines = []
        for rank, row in enumerate(rows):
            sign = replace(row, tick=0 if not row.is_waiting else row.tick)
            if rank not in self._since or self._since[rank][0] != sign:
                self._since[rank] = sign, now
                self._named.discard(rank)
            idle_s = now - self._since[rank][1]
            if idle_s >= self._stall_s and rank not in self._named:
                self._named.add(rank)
                lines.append(
                    f"loading: rank {rank} ({row.host or 'not heard of'}): {row.tensors}/"
                    f"{row.all_tensors} tensors, 0 B/s for {idle_s:.0f} s"
                )
        return lines


def _parsed(text: str) -> Row:
    with suppress(ValueError, TypeError):
        return Row(**json.loads(text))
    return Row()


class _Bar:
    """The bytes of all ranks as one bar on stderr."""

    def __init__(self) -> None:
        from rich.console import Console  # slow to import, and few loads have a terminal
        from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = "loading", BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)

    def show(self, rows: Sequence[Row]) -> None:
        self._bar.start()
        done, total = sum(row.nbytes for row in rows), sum(row.all_bytes for row in rows)
        self._bar.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        self._bar.stop()
