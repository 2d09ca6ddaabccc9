"""The output of ranks on its way: through pipes to the launcher's console, and to log files."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from launch.lines import STDERR, STDOUT, Console, RankStream
from llama.errors import UsageError

PARTIAL_LINE_S = 0.2
"""How long the beginning of a line waits for its end: a prompt shall be seen, lines stay whole."""
MOST_PENDING_BYTES = 64 * 1024
"""As many as a pipe can hold, which is what one read takes."""


class RankOutput:
    """The streams of all ranks of one launcher.

    With `prefix` every line on the console says which rank wrote it. With `log_dir` each rank has a
    file rank-N.log there, which is appended to; otherwise, without `prefix`, the ranks simply have
    the launcher's own streams. `say` gets a warning when the disk is full.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        *,
        prefix: bool,
        log_dir: Path | None = None,
        say: Callable[[str], None],
    ) -> None:
        """Raises UsageError when nothing can be written in `log_dir`."""
        self._has_pipes = prefix or log_dir is not None
        self._prefix = prefix
        self._say = say
        self._logs = _open_logs(log_dir, ranks) if log_dir is not None else {}
        self._consoles = tuple(Console(fd, say) for fd in (STDOUT, STDERR))
        self._selector = selectors.DefaultSelector()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="rank-output", daemon=True)

    def streams(self, rank: int) -> tuple[int | None, int | None]:
        """What to start the rank with as stdout and stderr; to be closed once it is started."""
        if not self._has_pipes:
            return None, None
        writers = []
        for console in self._consoles:
            reader, writer = os.pipe()
            prefix = f"[rank {rank}] ".encode() if self._prefix else b""
            pipe = RankStream(rank, reader, console, prefix)
            self._selector.register(reader, selectors.EVENT_READ, pipe)
            writers.append(writer)
        return writers[0], writers[1]

    def start(self) -> None:
        """Begin to pass on, when all ranks have been started: a fork and threads do not mix."""
        self._thread.start()

    def finish(self) -> bool:
        """Whether everything has been passed on, for when no rank is left.

        What a rank left behind may hold a pipe open and write on: it is not waited for.
        """
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(0.1)
        return not self._thread.is_alive()

    def _pump(self) -> None:
        try:
            is_last = False
            while self._selector.get_map() and not is_last:
                is_last = self._is_closing.is_set()
                for key, _ in self._selector.select(0 if is_last else PARTIAL_LINE_S):
                    self._read(key.data)
                for key in list(self._selector.get_map().values()):
                    self._flush(key.data, after_s=0 if is_last else PARTIAL_LINE_S)
        finally:  # ranks that write to a pipe which nobody reads would wait for ever
            for key in list(self._selector.get_map().values()):
                self._drop(key.data)
            self._selector.close()
            self._close_logs()

    def _read(self, pipe: RankStream) -> None:
        data = os.read(pipe.fd, MOST_PENDING_BYTES)
        self._log(pipe, data)
        if not pipe.pending:
            pipe.since_s = time.monotonic()
        pipe.pending += data
        whole = pipe.pending.rfind(b"\n") + 1 if pipe.prefix else len(pipe.pending)
        if not data or len(pipe.pending) > MOST_PENDING_BYTES:
            whole = len(pipe.pending)
        if self._show(pipe, whole) and not data:
            self._drop(pipe)

    def _flush(self, pipe: RankStream, *, after_s: float) -> None:
        if pipe.pending and time.monotonic() - pipe.since_s >= after_s:
            self._show(pipe, len(pipe.pending))

    def _show(self, pipe: RankStream, n_bytes: int) -> bool:
        """Put the first bytes of what is pending on the console; False when nobody reads there."""
        shown, pipe.pending = pipe.pending[:n_bytes], pipe.pending[n_bytes:]
        pipe.since_s = time.monotonic()
        try:
            if shown:
                pipe.console.write(pipe, shown)
        except BrokenPipeError:
            self._drop(pipe)  # the rank finds its stream closed, as if it were the launcher's
            return False
        return True

    def _drop(self, pipe: RankStream) -> None:
        self._selector.unregister(pipe.fd)
        os.close(pipe.fd)

    def _log(self, pipe: RankStream, data: bytes) -> None:
        if pipe.rank not in self._logs:
            return
        try:
            while data:
                data = data[self._logs[pipe.rank].write(data) :]
        except OSError as error:
            self._close_logs()
            self._say(f"warning: the log files end here ({error}); the ranks go on")

    def _close_logs(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()


def _open_logs(log_dir: Path, ranks: Sequence[int]) -> dict[int, BinaryIO]:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        return {rank: open(log_dir / f"rank-{rank}.log", "ab", buffering=0) for rank in ranks}
    except OSError as error:
        raise UsageError(
            f"cannot write log files in {log_dir}: {error.strerror or error}; "
            "name another folder with --log_dir"
        ) from error
