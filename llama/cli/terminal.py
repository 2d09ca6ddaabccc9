"""What the user is told, on stderr. stdout is for what the model says or a command found out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def byte_progress(what: str, *, total_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """A bar over `total_bytes`, advanced by calls with a number of bytes; None off a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(what, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)


@contextmanager
def token_progress(
    what: str, *, total_tokens: int, is_shown: bool
) -> Iterator[Callable[[int], None]]:
    """A bar over `total_tokens`, advanced by calls with a number of tokens; none off a terminal."""
    if not (is_shown and sys.stderr.isatty()):
        yield lambda n_tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), "tokens", TimeRemainingColumn())
    with Progress(what, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_tokens)
        yield lambda n_tokens: bar.advance(task, n_tokens)
