"""The calls that a rank makes on one axis: where the heartbeat reads them, and in errors' words."""

from __future__ import annotations

from collections.abc import Sequence

from llama.errors import LlamaError
from llama.parallel.liveness.failure import FailureRecord
from llama.parallel.liveness.whereabouts import Whereabouts


class CallMarks:
    """Marks around every call that can wait for a rank of the axis named `axis`.

    A call that raises never ends: what was awaited last stays readable.
    """

    def __init__(
        self,
        axis: str,
        *,
        rank: int,
        global_ranks: Sequence[int],
        failure: FailureRecord | None,
    ) -> None:
        self._axis = axis
        self._rank = rank
        self._global_ranks = tuple(global_ranks)
        self._failure = failure
        self._whereabouts = Whereabouts() if failure is None else failure.whereabouts
        self._names: dict[tuple[str, int | None], str] = {}

    def begin(self, op: str, peer: int | None = None) -> None:
        """From here on this rank may wait for `peer`, or for all ranks of the axis."""
        at = self._whereabouts
        at.awaited = self._global_ranks
        at.waiting_for = self._names.get((op, peer)) or self.name(op, peer)

    def end(self) -> None:
        at = self._whereabouts
        at.n_done += 1  # before the next line: who reads that nothing is awaited reads this as well
        at.waiting_for = None

    def name(self, op: str, peer: int | None = None) -> str:
        """'tp all_reduce with rank 1', put together once; ranks are the job's."""
        others = [rank for rank in self._global_ranks if rank != self._global_ranks[self._rank]]
        peers = others if peer is None else [self._global_ranks[peer]]
        word = "rank" if len(peers) == 1 else "ranks"
        name = f"{self._axis} {op} with {word} {', '.join(map(str, peers))}"
        return self._names.setdefault((op, peer), name)

    def explained(self, lost: LlamaError) -> LlamaError:
        """`lost`, for a peer that is gone or late, with what the failure record knows of why."""
        return lost if self._failure is None else self._failure.explain(lost)
