"""Our engine at work, in one process or as one of several ranks. Collective over the ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llama.bench.task import Measured, Task
from llama.bench.work import Event, Trace, Work
from llama.bench.worker import since_start_s
from llama.checkpoint import open_checkpoint
from llama.config import EngineConfig, ParallelConfig
from llama.engine.build import load_stage, make_cache
from llama.engine.engine import Engine
from llama.engine.sequence import SamplingParams
from llama.parallel.context import ParallelContext, initialize

_TABLES = ("tok_embeddings.", "rotary.")


@dataclass(frozen=True)
class Loaded:
    """An engine without tokenizer, and the seconds that its weights took."""

    engine: Engine
    load_s: float

    @property
    def read_bytes(self) -> int:
        """What a decoding step reads of this rank's weights: all but the tables, of which it reads
        a row a token.
        """
        stage = self.engine.stage
        held = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
        return sum(t.nbytes for name, t in held.items() if not name.startswith(_TABLES))


@contextmanager
def loaded(task: Task) -> Iterator[Loaded]:
    """The engine that `task` asks for; its ranks part at the end."""
    contestant = task.contestant
    context = initialize(
        ParallelConfig(
            tp_size=contestant.tp,
            pp_size=contestant.pp,
            device=task.device,
            transport=contestant.transport,
        )
    )
    try:
        began = time.perf_counter()
        engine = make_engine(task, context)
        context.world.barrier()
        yield Loaded(engine, time.perf_counter() - began)
    finally:
        context.close()


def make_engine(task: Task, context: ParallelContext) -> Engine:
    reader = open_checkpoint(task.model)
    options: dict[str, Any] = {
        "max_seq_len": task.most_tokens + 1,
        "max_batch_size": task.most_rows,
    }
    if task.contestant.quantize is not None:
        options["quantize"] = task.contestant.quantize
    config = EngineConfig.of(options, model=reader.config)
    dtype = getattr(torch, task.contestant.dtype)
    stage, _ = load_stage(reader, config=config, context=context, dtype=dtype)
    reader.close()
    return Engine(
        model_config=reader.config,
        config=config,
        context=context,
        stage=stage,
        cache=make_cache(stage, config=config, context=context, dtype=dtype),
        dtype=dtype,
    )


def run(task: Task) -> Measured:
    """Every work once to warm up, then timed."""
    with loaded(task) as ready:
        engine = ready.engine
        figures = {"load_s": ready.load_s, "read_bytes": float(ready.read_bytes)}
        traces = {}
        for number, work in enumerate(task.works):
            go_through(engine, work.warm_up)
            if number == 0:
                figures["started_s"] = since_start_s()
            before = engine.stats()
            trace = go_through(engine, work)
            if trace is not None:
                traces[work.name] = trace
            for old, new in zip(before, engine.stats(), strict=True):
                share = (new.busy_s - old.busy_s) / max(new.wall_s - old.wall_s, 1e-9)
                figures[f"busy share of rank {new.rank} in {work.name}"] = share
    return Measured(traces=traces, figures=figures)


def go_through(engine: Engine, work: Work) -> Trace | None:
    """The trace, on the rank that leads."""
    params = SamplingParams(temperature=0.0, max_tokens=work.new_tokens)
    prompts = work.prompts(engine.model_config.vocab_size)
    requests = engine.make_requests(prompts, [params] * work.batch)
    events: list[Event] = []
    began = time.perf_counter()
    n_tokens = n_started = 0
    for request in engine.stream(requests):
        if request is None:
            began = time.perf_counter()
            continue
        n_tokens += 1
        n_started += len(request.token_ids) == len(request.prompt_token_ids) + 1
        events.append(Event(time.perf_counter() - began, n_tokens, n_started))
    if not engine.context.is_leader:
        return None
    return Trace(events, requests[0].output_token_ids)
