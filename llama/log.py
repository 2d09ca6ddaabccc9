"""The package's logger, and how a line says which rank wrote it.

Handlers and levels belong to the program: nothing is configured here, on import or later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable


def get_logger() -> logging.Logger:
    """The one logger of this package, "llama"."""
    return logging.getLogger("llama")


def rank_prefix(rank: int, host: str) -> str:
    """What stands before every line that one of several ranks writes."""
    return f"[rank {rank} {host}]"


def prefix_log(rank: int, host: str) -> Callable[[], None]:
    """Put the rank before every line that is logged from now on; returns what takes that back."""
    prefix = rank_prefix(rank, host)

    def add_prefix(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{prefix} {record.getMessage()}", None
        return True

    get_logger().addFilter(add_prefix)
    return lambda: get_logger().removeFilter(add_prefix)
