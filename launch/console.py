"""What the launcher tells its user, on stderr: a table before the start, a line after a failure."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def say(line: str) -> None:
    """One line of the launcher's own."""
    sys.stderr.write(f"launch: {line}\n")
    sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`rows` under `columns`: drawn by rich on a terminal, in plain aligned text elsewhere."""
    if sys.stderr.isatty():
        _draw(title, columns, rows)
    else:
        sys.stderr.write(plain_table(title, columns, rows))
    sys.stderr.flush()


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
