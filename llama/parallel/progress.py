"""A board on which every rank writes how far it is, for one rank to read, and a flag for all of
them: the job's store again.

Only for people who wait: a store that is slow, gone or absent leaves the board empty, and nothing
else happens. It does not know what the rows say.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


_FLAG = "flag"


class Board:
    """A row of text a rank, and one flag. Never raises; calls may block as long as the store does.

    So only a thread that nobody waits for should make them. `store` is None for one process.
    """

    def __init__(self, store: Store | None, *, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._prefix: str | None = None
        self._own = ""

    def publish(self, row: str) -> None:
        """Replace this rank's row."""
        self._own = row
        if self._store is not None:
            with suppress(Exception):
                self._store.set(self._key(str(self.rank)), row)

    def rows(self) -> list[str]:
        """Every rank's row, "" where there is none yet. Up to two requests a rank."""
        return [self._row(rank) for rank in range(self.size)]

    def raise_flag(self) -> None:
        """Show every rank the flag from now on."""
        if self._store is not None:
            with suppress(Exception):
                self._store.set(self._key(_FLAG), "up")

    def has_flag(self) -> bool:
        """Whether some rank has raised the flag. One request."""
        if self._store is not None:
            with suppress(Exception):
                return bool(self._store.check([self._key(_FLAG)]))
        return False

    def _row(self, rank: int) -> str:
        if rank == self.rank:
            return self._own
        if self._store is not None:
            with suppress(Exception):
                key = self._key(str(rank))
                if self._store.check([key]):  # `get` would wait for it
                    return self._store.get(key).decode()
        return ""

    def _key(self, name: str) -> str:
        """A place of this board's own: the n-th board of one rank is the n-th of the others."""
        if self._prefix is None:
            assert self._store is not None
            number = self._store.add(f"llama/board/count/{self.rank}", 1)
            self._prefix = f"llama/board/{number}"
        return f"{self._prefix}/{name}"
