"""The engine: one replica's scheduler, its ring of plans, and this rank's runner.

`step` and `follow` are two sides of one collective: the leader (first rank of the replica)
schedules and steps, every other rank follows its plans until the leader stops. `generate` is both,
for programs that run the same call on every rank. Prompts are token ids here; text only enters for
stop strings.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from llama.config import EngineConfig, ModelConfig
from llama.engine.exchange import FinishedSequence, all_sound, finished, share_results
from llama.engine.inside import ModelOutput, forward_pass
from llama.engine.output import OutputProcessor
from llama.engine.pipeline import PlanRing
from llama.engine.plan import BatchPlan
from llama.engine.rows import Rows
from llama.engine.runner import ModelRunner
from llama.engine.scheduler import Scheduler
from llama.engine.sequence import SamplingParams, mix64
from llama.engine.sequence import Sequence as Request
from llama.engine.stats import RankStats, gather_stats
from llama.errors import LlamaError, UsageError
from llama.kvcache.cache import KVCache
from llama.models.decoder import DecoderStage
from llama.models.record import Recorder
from llama.parallel.context import ParallelContext
from llama.parallel.liveness.whereabouts import Phase
from llama.tokenizer import Tokenizer


class Engine:
    """Runs requests on one replica. `stage` holds loaded weights; `cache` was sized for all ranks
    alike.
    """

    def __init__(
        self,
        *,
        model_config: ModelConfig,
        config: EngineConfig,
        context: ParallelContext,
        stage: DecoderStage,
        cache: KVCache,
        dtype: torch.dtype,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> None:
        self.model_config = model_config
        self.config = config
        self.context = context
        self.stage = stage
        self.cache = cache
        self.seed = seed
        self.eos_token_ids = frozenset(tokenizer.stop_tokens if tokenizer else ())
        # Rows of the head beyond the tokenizer's are padding: no tokens, and never drawn.
        n_words = tokenizer.n_words if tokenizer else model_config.vocab_size
        self.runner = ModelRunner(
            stage, cache, config=config, context=context, dtype=dtype, n_words=n_words
        )
        self.scheduler = Scheduler(
            config,
            num_blocks=cache.num_blocks,
            ring_blocks=cache.ring_blocks,
            max_in_flight=context.layout.pp_size,
            vocab_size=n_words,
        )
        self.outputs = OutputProcessor(tokenizer) if tokenizer else None
        self._rows = Rows(
            model_config, config, num_blocks=cache.num_blocks, ring_blocks=cache.ring_blocks
        )
        self._ring = PlanRing(context)
        self._in_flight: deque[BatchPlan] = deque()
        self._n_requests = 0
        self._wall_s = 0.0
        self._most_in_flight = 0
        self._is_running = False
        self._failure: str | None = None

    # -- one request at a time, on the leader ------------------------------------------------

    def make_requests(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Request]:
        """Checked requests, numbered in this call and seeded the same on every rank.

        Raises UsageError.
        """
        requests = []
        for index, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
            seed = mix64(self.seed, self._n_requests + index) if param.seed is None else param.seed
            request = Request(
                seq_id=index,
                prompt_token_ids=prompt,
                params=param,
                seed=seed,
                eos_token_ids=self.eos_token_ids,
            )
            if param.stop and self.outputs is None:
                raise UsageError("stop strings need a tokenizer; give stop_token_ids instead")
            self.scheduler.check(request)
            requests.append(request)
        self._n_requests += len(requests)
        return requests

    def step(self) -> list[Request]:
        """Leader: fill the ring, then take in the oldest plan's result.

        Returns the requests that gained a token or finished: none when that plan only computed
        parts of prompts, or when nothing is left to run. Asked to stop, it aborts what has not
        begun.
        """
        with self.context.whereabouts.during(Phase.STEP, "generate"):
            aborted = self.scheduler.abort_new() if self.context.drain.is_asked else []
            return self._with_text([*aborted, *self._advance()])

    def _advance(self) -> list[Request]:
        while len(self._in_flight) < self.context.layout.pp_size:
            plan = self.scheduler.schedule()
            if plan is None:
                break
            self._ring.announce(plan)
            result = self.runner.run(plan)
            if result is not None:
                self._ring.answer(result)
            self._in_flight.append(plan)
        if not self._in_flight:
            return []
        self._most_in_flight = max(self._most_in_flight, len(self._in_flight))
        plan = self._in_flight.popleft()
        return self.scheduler.update(plan, self._ring.collect())

    def follow(self) -> None:
        """Every rank but the leader: run plans until the leader says stop."""
        while not (plan := self._ring.next_plan()).stop:
            with self.context.whereabouts.during(Phase.STEP, "generate"):
                result = self.runner.run(plan)
                if result is not None:
                    self._ring.answer(result)
        self._flush()

    def stop_followers(self) -> None:
        """Leader: drop what is unfinished, drain the ring, and let the followers return."""
        for request in self.scheduler.unfinished():
            self.scheduler.finish(request.seq_id, "abort")
        with self.context.whereabouts.during(Phase.STEP, "ending a call"):
            while self._in_flight:
                self.scheduler.update(self._in_flight.popleft(), self._ring.collect())
            self._ring.announce(BatchPlan.STOP)
            self._flush()
        if self.outputs is not None:
            self.outputs.reset()

    # -- the same call on every rank ---------------------------------------------------------

    def check_ready(self) -> None:
        """Raises LlamaError after a failure with peers, UsageError while a stream is under way."""
        if self._failure is not None:
            raise LlamaError(
                f"this engine is out of service after: {self._failure}; build a new one"
            )
        if self._is_running:
            raise UsageError("a stream of this engine is under way; exhaust or close it first")

    def stream(self, requests: Sequence[Request]) -> Generator[Request | None, None, None]:
        """Run what `make_requests` made. Collective over the world.

        Yields None once before anything runs, so that it can be entered without waiting. Then the
        leader of each replica yields every request that changed, after each step, out of those this
        replica serves (every dp_size-th); other ranks yield nothing. Closed early, it aborts what
        is unfinished; asked to stop (see `Drain`), what has not begun. Raises what `check_ready`
        does.
        """
        self.check_ready()
        dp_rank = self.context.coordinates.dp_rank
        mine = requests[dp_rank :: self.context.layout.dp_size]
        began = time.perf_counter()
        self._is_running = True
        try:
            with self._fatal_unless_alone(), self.context.drain.possible():
                if self.context.is_leader:
                    yield from self._lead(mine)
                else:
                    yield None
                    self.follow()
        finally:
            self._is_running = False
            self._wall_s += time.perf_counter() - began

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[FinishedSequence]:
        """Collective over the world: every rank gives the same prompts and gets every result, in
        order.

        Raises on every rank, when all requests are done, LlamaError for the first that failed by
        itself; the engine stays of use.
        """
        requests = self.make_requests(prompts, params)
        with self.context.drain.possible(), self.context.whereabouts.during(Phase.STEP, "generate"):
            for _ in self.stream(requests):
                pass
            with self._fatal_unless_alone():
                results = share_results(finished(requests), len(requests), context=self.context)
        return all_sound(results)

    def forward_rows(self, token_ids: Tensor, start_pos: int) -> Tensor:
        """Logits (batch, seq, vocab_size) fp32 on the CPU of every rank; see `look_inside`."""
        return self.look_inside(token_ids, start_pos, Recorder()).logits

    def look_inside(self, token_ids: Tensor, start_pos: int, record: Recorder) -> ModelOutput:
        """One forward pass of `token_ids` (batch, seq), with what `record` is there to collect.

        Collective over the world. Row i lives in its own fixed share of the KV cache, so calls
        with growing start_pos continue each other; a `generate` in between overwrites them, as in
        Meta's package. Raises UsageError for rows, positions or ids that are out of range,
        RankMismatchError when ranks bring different ones.
        """
        self.check_ready()
        tokens = token_ids.tolist() if isinstance(token_ids, Tensor) else repr(token_ids)
        self.context.agree({"tokens": tokens, "start_pos": start_pos, **record.wanted})
        plan = self._rows.plan(token_ids, start_pos)
        with self._fatal_unless_alone():
            return forward_pass(self.runner, plan, record=record)

    def stats(self) -> list[RankStats]:
        """Collective over the world: what every rank did so far, in rank order.

        Raises what `check_ready` does.
        """
        self.check_ready()
        return gather_stats(
            self.runner.stats,
            wall_s=self._wall_s,
            most_in_flight=self._most_in_flight,
            context=self.context,
        )

    # -- inside ------------------------------------------------------------------------------

    def _lead(self, requests: Sequence[Request]) -> Iterator[Request | None]:
        try:
            yield None
            for request in requests:
                self.scheduler.add(request)
            changed = self._with_text([r for r in requests if r.is_finished])
            while changed or self.scheduler.has_unfinished:
                yield from changed
                if self.outputs is not None:
                    self.outputs.forget_finished(changed)
                changed = self.step()
        except GeneratorExit:
            self.stop_followers()
            raise
        self.stop_followers()

    def _with_text(self, changed: list[Request]) -> list[Request]:
        """The same requests, their text brought up to date and stop strings acted on."""
        for request in changed:
            if self.outputs is not None and self.outputs.update(request):
                if request.is_finished:  # by the very token that completes the stop string
                    request.finish("stop")
                self.scheduler.finish(request.seq_id, "stop")
        return changed

    def _flush(self) -> None:
        """Wait until everything sent to other ranks has been received."""
        self._ring.flush()
        self.runner.flush()

    @contextmanager
    def _fatal_unless_alone(self) -> Iterator[None]:
        """An error with peers ends the job: they learn the cause and lose the connection."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            if self.context.layout.world_size == 1:
                self._reset()
            else:
                self._failure = f"{type(error).__name__}: {error}"
                self.context.fail(error)
            raise

    def _reset(self) -> None:
        """One process: forget every request, so that the next call starts clean."""
        self._in_flight.clear()
        self._ring = PlanRing(self.context)
        self.scheduler.reset()
        if self.outputs is not None:
            self.outputs.reset()
