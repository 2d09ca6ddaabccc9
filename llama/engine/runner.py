"""One rank's part of a step: build the batch, run this stage, pass hidden states on, or sample.

Knows nothing of requests: what it runs is a plan, and all it keeps between plans is the KV cache.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.engine.batch import build_batch
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
    """

    busy_s: float = 0.0
    n_plans: int = 0
    n_tokens: int = 0


class ModelRunner:
    """Runs plans through the local stage. `cache` holds the KV of the local layers.

    Of the vocabulary only the first `n_words` ids are drawn and scored.
    """

    def __init__(
        self,
        *,
        stage: DecoderStage,
        cache: KVCache,
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
        self._sampler = Sampler()
        self._whereabouts = context.whereabouts
        self._watched = Recorder()
        self._watched.at_layer = self._whereabouts.at_layer
        self._sending: deque[tuple[Work, Tensor]] = deque()

    @torch.inference_mode()
    def run(self, plan: BatchPlan) -> StepResult | None:
        """Run `plan`; the result on the rank that samples, None on every other."""
        began = time.perf_counter()
        self._whereabouts.at_step(self.stats.n_plans + 1)
        batch = self._batch(plan)
        prepared = time.perf_counter()
        x = self._receive(batch)
        received = time.perf_counter()
        hidden = self.stage(x, batch, self.cache, record=self._watched)
        result = None
        if self.context.is_last_stage:
            scored = self.stage.target_logprobs(hidden, batch, self._n_words)
            logits = self.stage.logits(hidden, batch)
            if logits is not None:
                result = self._sampler(logits[:, : self._n_words], scored, plan)
        else:
            self._send(hidden)
        self.stats.busy_s += time.perf_counter() - received + prepared - began
        self.stats.n_plans += 1
        self.stats.n_tokens += batch.n_tokens
        return result

    @torch.inference_mode()
    def logits(self, plan: BatchPlan, *, record: Recorder | None = None) -> Tensor | None:
        """Logits (n_tokens, vocab_size) fp32 of every new token: on last stage tp rank 0, else
        None. `record` collects what the local layers show.
        """
        record = record or Recorder()
        record.at_layer = self._whereabouts.at_layer
        batch = self._batch(plan, all_logits=True)
        hidden = self.stage(self._receive(batch), batch, self.cache, record=record)
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

    def _receive(self, batch: Batch) -> Tensor:
        """Token ids (n_tokens,) on the first stage, else hidden states (n_tokens, dim) of the one
        before.
        """
        if self.context.is_first_stage:
            return batch.token_ids
        hidden = torch.empty(
            batch.n_tokens,
            self.stage.config.dim,
            dtype=self._dtype,
            device=self.context.device,
        )
        return self.context.pp.recv(hidden, self.context.pp.rank - 1)

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
