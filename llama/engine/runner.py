"""One rank's part of a step: build the batch, run this stage, pass hidden states on, or sample.

Knows nothing of requests: what it runs is a plan, and all it keeps between plans is the KV cache.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.config import EngineConfig
from llama.engine.batch import build_batch
from llama.engine.graphs import DecodeGraphs, graphs_for
from llama.engine.plan import BatchPlan, StepResult
from llama.engine.sampler import Sampler
from llama.kvcache.cache import KVCache
from llama.models.decoder import DecoderStage
from llama.models.record import Recorder
from llama.ops.batch import Batch
from llama.parallel.comm import Work
from llama.parallel.context import ParallelContext


@dataclass
class RunnerStats:
    """Seconds this rank spent computing (not waiting for peers), and what it computed.

    On an asynchronous device these are the seconds of launching, not of the kernels.
    `first_token_at` is when it had drawn its first tokens, by `time.perf_counter`.
    """

    busy_s: float = 0.0
    n_plans: int = 0
    n_tokens: int = 0
    first_token_at: float | None = None


class ModelRunner:
    """Runs plans through the local stage. `cache` holds the KV of the local layers.

    Of the vocabulary only the first `n_words` ids are drawn and scored.
    """

    def __init__(
        self,
        stage: DecoderStage,
        cache: KVCache,
        *,
        config: EngineConfig,
        context: ParallelContext,
        dtype: torch.dtype,
        n_words: int,
    ) -> None:
        self.stage = stage
        self.cache = cache
        self.context = context
        self.stats = RunnerStats()
        self._dtype = dtype
        self._n_words = n_words
        self._graphs = graphs_for(
            stage,
            cache,
            config,
            dtype=dtype,
            device=context.device,
            tp_backend=context.backend.name if context.tp.size > 1 else "none",
        )
        self._waited_s = 0.0
        self._sampler = Sampler()
        self._whereabouts = context.whereabouts
        self._watched = Recorder()
        self._watched.at_layer = self._whereabouts.at_layer
        self._sending: deque[tuple[Work, Tensor]] = deque()

    @torch.inference_mode()
    def run(self, plan: BatchPlan) -> StepResult | None:
        """Run `plan`; the result on the rank that samples, None on every other."""
        began, self._waited_s = time.perf_counter(), 0.0
        self._whereabouts.at_step(self.stats.n_plans + 1)
        if self._graphs is not None and self._graphs.takes(plan):
            result = self._replay(self._graphs, plan)
        else:
            result = self._compute(plan)
        done = time.perf_counter()
        if result is not None and self.stats.first_token_at is None:
            self.stats.first_token_at = done
        self.stats.busy_s += done - began - self._waited_s
        self.stats.n_plans += 1
        self.stats.n_tokens += plan.num_tokens
        return result

    def _compute(self, plan: BatchPlan) -> StepResult | None:
        arriving = self._begin_receiving(plan)
        batch = self._batch(plan)
        x = self._arrived(arriving, batch)
        hidden = self.stage(x, batch, self.cache, record=self._watched)
        if not self.context.is_last_stage:
            self._send(hidden)
            return None
        scored = self.stage.target_logprobs(hidden, batch, self._n_words)
        logits = self.stage.logits(hidden, batch)
        return None if logits is None else self._sample(logits, scored, plan)

    def _replay(self, graphs: DecodeGraphs, plan: BatchPlan) -> StepResult | None:
        out = graphs.run(plan, receive=self._fill)
        if out is None:
            return None
        if not self.context.is_last_stage:
            self._send(out.clone())  # the next replay leaves its own there
            return None
        return self._sample(out, out.new_empty(0), plan)

    def _sample(self, logits: Tensor, scored: Tensor, plan: BatchPlan) -> StepResult:
        return self._sampler(logits[:, : self._n_words], scored, plan)

    @torch.inference_mode()
    def logits(self, plan: BatchPlan, *, record: Recorder | None = None) -> Tensor | None:
        """Logits (n_tokens, vocab_size) fp32 of every new token: on last stage tp rank 0, else
        None. `record` collects what the local layers show.
        """
        record = record or Recorder()
        record.at_layer = self._whereabouts.at_layer
        arriving = self._begin_receiving(plan)
        batch = self._batch(plan, all_logits=True)
        hidden = self.stage(self._arrived(arriving, batch), batch, self.cache, record=record)
        if self.context.is_last_stage:
            return self.stage.logits(hidden, batch)
        self._send(hidden)
        return None

    def _batch(self, plan: BatchPlan, *, all_logits: bool = False) -> Batch:
        return build_batch(
            plan,
            block_size=self.cache.block_size,
            ring_blocks=self.cache.ring_blocks,
            device=self.context.device,
            all_logits=all_logits,
        )

    def _begin_receiving(self, plan: BatchPlan) -> tuple[Work, Tensor] | None:
        """Hidden states (n_tokens, dim) of the stage before, on their way while this one prepares;
        None on the first.
        """
        if self.context.is_first_stage:
            return None
        hidden = torch.empty(
            plan.num_tokens,
            self.stage.config.dim,
            dtype=self._dtype,
            device=self.context.device,
        )
        return self.context.pp.irecv(hidden, self.context.pp.rank - 1), hidden

    def _arrived(self, arriving: tuple[Work, Tensor] | None, batch: Batch) -> Tensor:
        """What the stage takes: token ids (n_tokens,) on the first, hidden states elsewhere."""
        if arriving is None:
            return batch.token_ids
        work, hidden = arriving
        self._wait(work)
        return hidden

    def _fill(self, hidden: Tensor) -> None:
        """`hidden` with what the stage before sends."""
        self._wait(self.context.pp.irecv(hidden, self.context.pp.rank - 1))

    def _wait(self, work: Work) -> None:
        began = time.perf_counter()
        work.wait()
        self._waited_s += time.perf_counter() - began

    def _send(self, hidden: Tensor) -> None:
        """Start sending to the next stage; the tensor must stay alive until it has left."""
        work = self.context.pp.isend(hidden, self.context.pp.rank + 1)
        self._sending.append((work, hidden))
        # the ring never has more than pp_size plans in flight, so an older send has been received
        while len(self._sending) > self.context.pp.size:
            self._sending.popleft()[0].wait()

    def flush(self) -> None:
        """Wait until everything sent has been received."""
        while self._sending:
            self._sending.popleft()[0].wait()
