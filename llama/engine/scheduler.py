"""Who computes what next: requests in, BatchPlans out, results back in. No torch, no model.

First come, first served. A plan holds the decodes first, then chunks of prompts under way, then new
prompts, within `max_num_batched_tokens` and `max_batch_size`. A sequence gets the blocks of all its
known tokens, or a full ring, when it starts to run; when a decode then finds no free block, the
sequence that came last is preempted: it loses its blocks, keeps its tokens and waits at the front
to be computed again.

Several plans may be in flight at once, one per pipeline stage, and come back in the order in which
they left; `llama.engine.shares` says how much each takes. A sequence is in at most one of them,
except that the next chunk of a prompt may follow the previous one: every stage runs plans in order,
so the earlier K and V are there in time. For the same reason a later plan may write over what an
earlier one in flight reads: a chunk that goes round the ring of its blocks (see
`llama.kvcache.blocks`) reaches each stage after that one is done there.
Nothing that is in flight is preempted, and its blocks go to nobody else before it is back.

Every sequence that `add` accepts finishes: the oldest running one can always go on, because later
ones make room for it, and alone it fits.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from llama.config import EngineConfig
from llama.engine.admission import check_request, most_computed
from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence, SequenceResult, StepResult
from llama.engine.sequence import FinishReason, Sequence
from llama.engine.shares import chunk_share, fair_share
from llama.errors import LlamaError, UsageError
from llama.kvcache.blocks import BlockManager


class Scheduler:
    """The requests and the blocks of one replica."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_blocks: int,
        ring_blocks: int,
        vocab_size: int,
        max_in_flight: int = 1,
    ) -> None:
        if max_in_flight < 1:
            raise UsageError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self.config = config
        self.max_in_flight = max_in_flight
        self.vocab_size = vocab_size
        self._blocks = BlockManager(num_blocks, config.block_size, ring_blocks=ring_blocks)
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and every plan in flight, and take all blocks back."""
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self._blocks.reset()
        self._sequences: dict[int, Sequence] = {}  # also aborted ones whose plan is still out
        self._in_flight: deque[BatchPlan] = deque()

    @property
    def has_unfinished(self) -> bool:
        """Whether a sequence waits or runs; a plan may be in flight even when none does."""
        return bool(self.waiting or self.running)

    @property
    def in_flight(self) -> int:
        """Plans that `schedule` gave out and `update` has not seen come back."""
        return len(self._in_flight)

    @property
    def num_free_blocks(self) -> int:
        return self._blocks.num_free

    def unfinished(self) -> list[Sequence]:
        """Running, then waiting sequences, each in their order."""
        return [*self.running, *self.waiting]

    def check(self, sequence: Sequence) -> None:
        """Raises UsageError for a sequence that could never run, with the limit that it exceeds."""
        check_request(sequence, config=self.config, blocks=self._blocks, vocab_size=self.vocab_size)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; one with nothing to generate or score is finished at once.

        Raises UsageError as `check` does, and for a seq_id that is still in use.
        """
        self.check(sequence)
        if sequence.seq_id in self._sequences:
            raise UsageError(f"request {sequence.seq_id} is already there; number requests apart")
        if not self._has_room(sequence) and not sequence.wants_prompt_logprobs:
            sequence.finish("length")
            return
        self._sequences[sequence.seq_id] = sequence
        self.waiting.append(sequence)

    def finish(self, seq_id: int, reason: FinishReason) -> None:
        """End a sequence early: aborted, or its text reached a stop string.

        Nothing happens to one that has finished already: an abort may come late.
        """
        sequence = self._sequences.get(seq_id)
        if sequence is None or sequence.is_finished:
            return
        if sequence.status == "waiting":
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
        sequence.finish(reason)
        self._release(sequence)

    def abort_new(self) -> list[Sequence]:
        """End the sequences that have never run; those that were preempted may go on."""
        new = [sequence for sequence in self.waiting if not sequence.num_output_tokens]
        for sequence in new:
            self.finish(sequence.seq_id, "abort")
        return new

    def schedule(self) -> BatchPlan | None:
        """The next plan; None when nothing is ready or `max_in_flight` plans are out already.

        What it holds counts as in flight until `update` has seen it.
        """
        if self.in_flight >= self.max_in_flight:
            return None
        planned: list[PlannedSequence] = []
        budget = self.config.max_num_batched_tokens
        most_decodes = min(budget, self._decode_share())
        for sequence in self.running:  # making room takes away later ones only
            if len(planned) == most_decodes:
                break
            if sequence.is_decode and self._make_room(sequence):
                planned.append(self._plan(sequence, 1))
        prompts = deque(s for s in self.running if s.num_new_tokens > 1)
        most_sequences = len(planned) + self._prompt_share(len(prompts))
        budget = min(budget - len(planned), self._chunk_tokens())
        while budget and len(planned) < most_sequences:
            prompt = prompts.popleft() if prompts else self._admit()
            if prompt is None:
                break
            count = min(budget, prompt.num_new_tokens)
            planned.append(self._plan(prompt, count))
            budget -= count
        if not planned:
            return None
        plan = BatchPlan(tuple(planned))
        self._in_flight.append(plan)
        return plan

    def update(self, plan: BatchPlan, result: StepResult) -> list[Sequence]:
        """Take in what came of `plan`, the oldest in flight.

        Returns the sequences that gained a token or finished, in plan order. Raises LlamaError when
        the result does not belong to the plan.
        """
        if not self._in_flight or self._in_flight[0] != plan:
            raise LlamaError(f"not the oldest of {self.in_flight} plans in flight came back")
        if len(result.sequences) != len(plan.sequences):
            raise LlamaError(
                f"{len(result.sequences)} results came back for {len(plan.sequences)} sequences"
            )
        self._in_flight.popleft()
        changed = []
        for planned, outcome in zip(plan.sequences, result.sequences, strict=True):
            sequence = self._sequences[planned.seq_id]
            sequence.plans_in_flight -= 1
            if not sequence.is_finished and self._take_in(sequence, planned, outcome):
                changed.append(sequence)
            if sequence.is_finished:
                self._release(sequence)
        return changed

    def _take_in(
        self, sequence: Sequence, planned: PlannedSequence, outcome: SequenceResult
    ) -> bool:
        """Whether the sequence gained a token or finished."""
        if outcome.overflow_at >= 0:
            sequence.overflow(outcome.overflow_at)
            self.running.remove(sequence)
            return True
        if len(outcome.target_logprobs) != len(planned.targets):
            raise LlamaError(
                f"request {sequence.seq_id}: {len(outcome.target_logprobs)} prompt logprobs came "
                f"back for {len(planned.targets)} tokens"
            )
        if planned.targets:
            sequence.add_prompt_logprobs(outcome.target_logprobs, first=planned.start + 1)
        if planned.sample:
            if not 0 <= outcome.token_id < self.vocab_size:
                raise LlamaError(
                    f"request {sequence.seq_id}: token id {outcome.token_id} was sampled from a "
                    f"vocabulary of {self.vocab_size}"
                )
            limit = self.config.max_seq_len
            sequence.append(outcome.token_id, outcome.logprob, max_seq_len=limit)
        elif planned.start + len(planned.token_ids) == sequence.num_tokens:
            sequence.finish("length")  # a scored prompt that leaves no room to generate
        if sequence.is_finished:
            self.running.remove(sequence)
        return planned.sample or sequence.is_finished

    def _plan(self, sequence: Sequence, count: int) -> PlannedSequence:
        """The next `count` tokens of a running sequence, from here on in flight."""
        start, stop = sequence.num_computed, sequence.num_computed + count
        sequence.num_computed = stop
        sequence.plans_in_flight += 1
        sample = stop == sequence.num_tokens and self._has_room(sequence)
        return PlannedSequence(
            seq_id=sequence.seq_id,
            token_ids=tuple(sequence.token_ids[start:stop]),
            start=start,
            num_prompt_tokens=len(sequence.prompt_token_ids),
            block_table=sequence.block_table[: self._blocks.blocks_for(stop)],
            sample=sample,
            draw=DrawParams.of(sequence) if sample else None,
            targets=sequence.targets(start, stop),
        )

    def _has_room(self, sequence: Sequence) -> bool:
        return sequence.num_tokens < sequence.max_num_tokens(self.config.max_seq_len)

    def _admit(self) -> Sequence | None:
        """Start the first waiting sequence if there is a seat and there are blocks for it.

        A block is left for everyone who can still grow, or it would soon be preempted again.
        """
        if not self.waiting or len(self.running) >= self.config.max_batch_size:
            return None
        growing = sum(
            len(sequence.block_table)
            < self._blocks.blocks_for(most_computed(sequence, self.config.max_seq_len))
            for sequence in self.running
        )
        need = self._blocks.blocks_for(self.waiting[0].num_tokens)
        if need + growing > self._blocks.num_free:
            return None
        sequence = self.waiting.popleft()
        sequence.status = "running"
        self.running.append(sequence)
        self._allocate(sequence)
        return sequence

    def _make_room(self, sequence: Sequence) -> bool:
        """Get the block of the next token, if need be from those who came later."""
        while not self._blocks.can_allocate(sequence.seq_id, sequence.num_tokens):
            victim = next(later for later in reversed(self.running) if not later.in_flight)
            if victim is sequence:
                return False
            self._preempt(victim)
        self._allocate(sequence)
        return True

    def _allocate(self, sequence: Sequence) -> None:
        expected = most_computed(sequence, self.config.max_seq_len)
        self._blocks.allocate(sequence.seq_id, sequence.num_tokens, expected_tokens=expected)
        sequence.block_table = self._blocks.block_table(sequence.seq_id)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._blocks.free(sequence.seq_id)
        sequence.block_table = ()
        sequence.num_computed = 0
        sequence.status = "waiting"
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Give up a finished sequence, its blocks only when no plan that writes them is out."""
        if sequence.in_flight:
            return
        if sequence.block_table:
            self._blocks.free(sequence.seq_id)
            sequence.block_table = ()
        del self._sequences[sequence.seq_id]

    def _seated(self) -> int:
        """How many of the waiting sequences have a seat in the batch."""
        return min(len(self.waiting), self.config.max_batch_size - len(self.running))

    def _decode_share(self) -> int:
        """Decodes of the next plan; who waits for a token of its own counts as in flight."""
        out = sum(not sequence.num_new_tokens for sequence in self.running)
        total = out + sum(sequence.is_decode for sequence in self.running)
        return fair_share(total, out, plans=self.max_in_flight, plans_out=self.in_flight)

    def _prompt_share(self, n_running: int) -> int:
        """Prompts of the next plan, in which `n_running` may go on and others begin."""
        total = n_running + self._seated()
        return fair_share(total, 0, plans=self.max_in_flight - self.in_flight, plans_out=0)

    def _chunk_tokens(self) -> int:
        """Prompt tokens of the next plan."""
        if self.max_in_flight == 1:
            return self.config.max_num_batched_tokens
        prompts = [s for s in self.running if s.num_new_tokens > 1]
        prompts += islice(self.waiting, self._seated())
        total = sum(prompt.num_tokens for prompt in prompts)
        return chunk_share(total, plans=self.max_in_flight)
