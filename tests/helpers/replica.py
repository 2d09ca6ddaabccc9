"""A replica without tensors: a scheduler, and ranks that only remember what plans tell them.

Its cache has one integer per slot, written and read only through the plans, and its "model" takes
for the next token a checksum of all tokens that it finds in the cache. So a block that is lost,
shared or given away too early changes the output.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from typing import Any

from llama.config import EngineConfig
from llama.engine.plan import BatchPlan, PlannedSequence, SequenceResult, StepResult
from llama.engine.scheduler import Scheduler
from llama.engine.sequence import SamplingParams, Sequence, TokenLogprob

VOCAB_SIZE = 50
EOS = 0


def next_token(token_ids: list[int], step: int) -> int:
    return zlib.crc32(repr((token_ids, step)).encode()) % VOCAB_SIZE


def alone(sequence: Sequence, max_seq_len: int, window: int) -> tuple[list[int], str]:
    """Output and finish reason of a request by itself, from the definition."""
    token_ids, output = list(sequence.prompt_token_ids), list[int]()
    limit = math.inf if sequence.params.max_tokens is None else sequence.params.max_tokens
    while len(token_ids) < max_seq_len and len(output) < limit:
        token_id = next_token(token_ids[-window:], len(output))
        if token_id in sequence.stop_token_ids:
            return output, "stop"
        token_ids.append(token_id)
        output.append(token_id)
    return output, "length"


class Replica:
    """A scheduler, and a cache that its plans are run on in the order in which they were made.

    So does every pipeline stage run them on its own cache. `window` is what its "model" sees.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_in_flight: int = 1,
        window: int | None = None,
        **config: Any,
    ) -> None:
        sizes = {"max_seq_len": 64, "max_batch_size": 8, "block_size": 4, **config}
        self.config = EngineConfig(**sizes)
        self.num_blocks = num_blocks
        self.window = window or self.config.max_seq_len
        self.ring_blocks = self.config.ring_blocks(window)
        self.scheduler = Scheduler(
            self.config,
            num_blocks=num_blocks,
            ring_blocks=self.ring_blocks,
            max_in_flight=max_in_flight,
            vocab_size=VOCAB_SIZE,
        )
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.out: deque[tuple[BatchPlan, StepResult]] = deque()
        self.sequences: list[Sequence] = []
        self.plans: list[BatchPlan] = []
        self.preempted = 0

    def add(self, n_prompt: int, **params: Any) -> Sequence:
        seq_id = len(self.sequences)
        prompt = [1 + (seq_id * 7 + at) % (VOCAB_SIZE - 1) for at in range(n_prompt)]
        sequence = Sequence(
            seq_id, prompt, SamplingParams(**params), seed=seq_id, eos_token_ids=[EOS]
        )
        self.scheduler.add(sequence)
        self.sequences.append(sequence)
        return sequence

    def schedule(self) -> BatchPlan | None:
        computed = {s.seq_id: s.num_computed for s in self.scheduler.running}
        flying = {s.seq_id for s in self.scheduler.running if s.in_flight}
        plan = self.scheduler.schedule()
        lost = {s.seq_id for s in self.scheduler.waiting} & set(computed)
        assert not lost & flying, "preempted in flight"
        self.preempted += len(lost)
        if plan is not None:
            assert BatchPlan.decode(plan.encode()) == plan
            self.check(plan)
            result = StepResult(tuple(self.run(planned) for planned in plan.sequences))
            self.out.append((plan, result))
            self.plans.append(plan)
        return plan

    def check(self, plan: BatchPlan) -> None:
        assert 0 < plan.num_tokens <= self.config.max_num_batched_tokens
        assert 0 < len(plan.sequences) <= self.config.max_batch_size
        assert len({planned.seq_id for planned in plan.sequences}) == len(plan.sequences)
        for planned in plan.sequences:
            assert planned.token_ids
            assert (planned.draw is not None) == planned.sample
            in_cache = -(-(planned.start + len(planned.token_ids)) // self.config.block_size)
            assert len(planned.block_table) == min(in_cache, self.ring_blocks)
        for earlier, _ in self.out:
            for other in earlier.sequences:
                if other.seq_id in {planned.seq_id for planned in plan.sequences}:
                    assert not other.sample, "planned again before its token was known"

    def run(self, planned: PlannedSequence) -> SequenceResult:
        """Read what the first new token sees, then write the new tokens, each over what its place
        in the ring held; the last one still finds all that it sees in the cache.
        """
        start, end = planned.start, planned.start + len(planned.token_ids)
        before = self.read(planned, range(max(0, start + 1 - self.window), start))
        for position, token_id in enumerate(planned.token_ids, start):
            self.slots[self.slot(planned, position)] = (planned.seq_id, position, token_id)
        token_ids = [*before, *planned.token_ids]
        assert self.read(planned, range(max(0, end - self.window), end)) == self.seen(token_ids)
        scored = tuple(
            score(self.seen(token_ids[: len(before) + at + 1]), target)
            for at, target in enumerate(planned.targets)
        )
        if planned.draw is None:
            return SequenceResult(target_logprobs=scored)
        token_id = next_token(self.seen(token_ids), planned.draw.step)
        return SequenceResult(token_id, TokenLogprob(token_id, -0.5), scored)

    def slot(self, planned: PlannedSequence, position: int) -> int:
        block, offset = divmod(position, self.config.block_size)
        return planned.block_table[block % self.ring_blocks] * self.config.block_size + offset

    def read(self, planned: PlannedSequence, positions: range) -> list[int]:
        """The tokens at `positions`, each found in its slot of the cache."""
        found = [self.slots[self.slot(planned, position)] for position in positions]
        assert [entry[:2] for entry in found] == [(planned.seq_id, at) for at in positions]
        return [token_id for _, _, token_id in found]

    def seen(self, token_ids: list[int]) -> list[int]:
        """What the last of them sees."""
        return token_ids[-self.window :]

    def update(self) -> list[Sequence]:
        return self.scheduler.update(*self.out.popleft())

    def check_blocks(self) -> None:
        """No block has two owners among those who run or are still in flight, and nobody has more
        than a ring.
        """
        running = [s.block_table for s in self.sequences if s.block_table]
        assert all(len(table) <= self.ring_blocks for table in running)
        held = [block for table in running for block in table]
        assert len(held) == len(set(held)) == self.num_blocks - self.scheduler.num_free_blocks

    def finish_all(self) -> int:
        """Steps until everybody is done and all plans are back."""
        steps = 0
        while self.scheduler.has_unfinished or self.out:
            while self.schedule() is not None:
                self.check_blocks()
            assert self.out, "unfinished requests, but nothing to run"
            self.update()
            steps += 1
            assert steps < 20_000, "no progress"
        assert self.scheduler.in_flight == 0
        assert self.scheduler.num_free_blocks == self.num_blocks
        return steps

    def check_outputs(self) -> None:
        for sequence in self.sequences:
            output, reason = alone(sequence, self.config.max_seq_len, self.window)
            got = sequence.output_token_ids
            if sequence.finish_reason == "abort":
                assert got == output[: len(got)]
            else:
                assert (got, sequence.finish_reason) == (output, reason)
            assert [logprob.token_id for logprob in sequence.logprobs] == got
            if sequence.params.prompt_logprobs and sequence.finish_reason != "abort":
                prompt = list(sequence.prompt_token_ids)
                scores = [score(self.seen(prompt[:at]), prompt[at]) for at in range(1, len(prompt))]
                assert sequence.prompt_logprobs == [None, *scores]


def score(before: list[int], token_id: int) -> float:
    return -float(zlib.crc32(repr((before, token_id)).encode()))
