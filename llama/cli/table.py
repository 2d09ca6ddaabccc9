"""Tables on stdout: drawn by rich on a terminal, plain aligned text elsewhere, never cut off."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

_PADDING = 3  # what rich puts around a column, its line counted


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`rows` under `columns`, each as wide as its longest entry, numbers to the right."""
    numbers = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    if sys.stdout.isatty():
        _draw(columns, rows, numbers, width=sum(widths) + _PADDING * len(widths) + 1)
        return
    for line in lines:
        entries = [
            entry.rjust(width) if is_number else entry.ljust(width)
            for entry, width, is_number in zip(line, widths, numbers, strict=True)
        ]
        print("  ".join(entries).rstrip())


def _is_number(entry: str) -> bool:
    """Whether it is a number, of some unit or none; "0-3" and names are not."""
    return re.fullmatch(r"[\d,.]*( \w+)?", entry) is not None


def _draw(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool], *, width: int
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column, is_number in zip(columns, numbers, strict=True):
        table.add_column(column, no_wrap=True, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # names are not markup
    Console(width=max(width, shutil.get_terminal_size().columns)).print(table)
