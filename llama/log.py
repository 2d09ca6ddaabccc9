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
    added = _RankPrefix(rank_prefix(rank, host))
    if not any(isinstance(present, _RankPrefix) for present in get_logger().filters):
        get_logger().addFilter(added)
    return lambda: get_logger().removeFilter(added)


class _RankPrefix(logging.Filter):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{self._prefix} {record.getMessage()}", None
        return True
