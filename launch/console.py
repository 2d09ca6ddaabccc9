"""What the launcher tells its user, on stderr: a table before the start, a line after a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from launch.lines import STDERR, STDOUT


def open_streams() -> None:
    """Let those of stdin, stdout and stderr lead nowhere that this process was started without.

    The next file to be opened, a store's connection perhaps, would else take its number, and ranks
    write into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", closefd=False)


def say(line: str) -> None:
    """One line of the launcher's own."""
    with _unheard():
        sys.stderr.write(f"launch: {line}\n")
        sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`rows` under `columns`: drawn by rich on a terminal, in plain aligned text elsewhere."""
    with _unheard():
        if sys.stderr.isatty():
            _draw(title, columns, rows)
        else:
            sys.stderr.write(plain_table(title, columns, rows))
        sys.stderr.flush()


@contextmanager
def _unheard() -> Iterator[None]:
    """What cannot be written, as nobody reads it or the disk is full, is not worth a job."""
    try:
        yield
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let `stream` lead nowhere: what it still holds would give the launcher's exit a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of text, each column as wide as its longest entry."""
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    text = [
        "  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([f"launch: {title}", *(f"  {line}" for line in text), ""])


def _draw(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    terminal = Console(stderr=True, highlight=False)
    terminal.print(f"launch: {title}", markup=False)
    terminal.print(table)
