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


def alone(sequence: Sequence, max_seq_len: int) -> tuple[list[int], str]:
    """Output and finish reason of a request by itself, from the definition."""
    token_ids, output = list(sequence.prompt_token_ids), list[int]()
    while len(token_ids) < max_seq_len and len(output) < (sequence.params.max_tokens or math.inf):
        token_id = next_token(token_ids, len(output))
        if token_id in sequence.stop_token_ids:
            return output, "stop"
        token_ids.append(token_id)
        output.append(token_id)
    return output, "length"


class Replica:
    """A scheduler, and a cache that its plans are run on in the order in which they were made."""

    def __init__(self, *, num_blocks: int = 64, max_in_flight: int = 1, **config: Any) -> None:
        sizes = {"max_seq_len": 64, "max_batch_size": 8, "block_size": 4, **config}
        self.config = EngineConfig(**sizes)
        self.num_blocks = num_blocks
        self.scheduler = Scheduler(
            self.config,
            num_blocks=num_blocks,
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
            assert len(planned.block_table) == in_cache
        for earlier, _ in self.out:
            for other in earlier.sequences:
                if other.seq_id in {planned.seq_id for planned in plan.sequences}:
                    assert not other.sample, "planned again before its token was known"

    def run(self, planned: PlannedSequence) -> SequenceResult:
        """Write the new tokens, then read the whole sequence back through its block table."""

        def slot(position: int) -> int:
            block, offset = divmod(position, self.config.block_size)
            return planned.block_table[block] * self.config.block_size + offset

        end = planned.start + len(planned.token_ids)
        for position, token_id in enumerate(planned.token_ids, planned.start):
            self.slots[slot(position)] = (planned.seq_id, position, token_id)
        found = [self.slots[slot(position)] for position in range(end)]
        assert [entry[:2] for entry in found] == [(planned.seq_id, at) for at in range(end)]
        token_ids = [token_id for _, _, token_id in found]
        scored = tuple(
            score(token_ids[: planned.start + at + 1], target)
            for at, target in enumerate(planned.targets)
        )
        if planned.draw is None:
            return SequenceResult(target_logprobs=scored)
        token_id = next_token(token_ids, planned.draw.step)
        return SequenceResult(token_id, TokenLogprob(token_id, -0.5), scored)

    def update(self) -> list[Sequence]:
        return self.scheduler.update(*self.out.popleft())

    def check_blocks(self) -> None:
        """No block has two owners among those who run or are still in flight."""
        running = [s.block_table for s in self.sequences if s.block_table]
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
            output, reason = alone(sequence, self.config.max_seq_len)
            got = sequence.output_token_ids
            if sequence.finish_reason == "abort":
                assert got == output[: len(got)]
            else:
                assert (got, sequence.finish_reason) == (output, reason)
            assert [logprob.token_id for logprob in sequence.logprobs] == got
            if sequence.params.prompt_logprobs and sequence.finish_reason != "abort":
                prompt = list(sequence.prompt_token_ids)
                scores = [score(prompt[:at], prompt[at]) for at in range(1, len(prompt))]
                assert sequence.prompt_logprobs == [None, *scores]


def score(before: list[int], token_id: int) -> float:
    return -float(zlib.crc32(repr((before, token_id)).encode()))
