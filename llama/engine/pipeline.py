"""The ring that plans and results travel: leader -> every rank of the replica, sampler -> leader.

Nobody waits to send: the leader goes on to its own stage while the others still run the plan
before, and that is what lets pp_size plans be in flight. Hidden states travel between stages, not
here.
"""

from __future__ import annotations

from collections import deque

from llama.engine.plan import BatchPlan, StepResult
from llama.parallel.context import ParallelContext
from llama.parallel.liveness.whereabouts import Phase


class PlanRing:
    """Plans out, results back, over the replica's control communicator. Integers only."""

    def __init__(self, context: ParallelContext) -> None:
        self._context = context
        self._mailbox = context.mailbox
        self._leader = 0
        self._sampler = context.layout.replica_size - context.layout.tp_size
        self._own_results: deque[StepResult] = deque()

    def announce(self, plan: BatchPlan) -> None:
        """Leader: tell every other rank of the replica what to run next."""
        if self._context.replica.size == 1:
            return
        message = plan.encode()
        for rank in range(self._context.replica.size):
            if rank != self._leader:
                self._mailbox.post(message, rank)

    def next_plan(self) -> BatchPlan:
        """Every other rank: the next plan, waiting for it."""
        with self._context.whereabouts.during(Phase.WAIT, "waiting for the next plan"):
            return BatchPlan.decode(self._mailbox.receive(self._leader))

    def answer(self, result: StepResult) -> None:
        """Sampler: the result of the plan it just ran."""
        if self._context.is_leader:
            self._own_results.append(result)
        else:
            self._mailbox.post(result.encode(), self._leader)

    def collect(self) -> StepResult:
        """Leader: the result of the oldest plan that has not been collected, waiting for it."""
        if self._sampler == self._leader:
            return self._own_results.popleft()
        return StepResult.decode(self._mailbox.receive(self._sampler))

    def flush(self) -> None:
        """Wait until everything posted has been received."""
        self._mailbox.flush()
