"""llama.cpp at work, through the plain C interface of llama-cpp-python.

Its default settings, with the declared threads for prompts and for single tokens alike. A prompt
asks for logits of its last token only; the greedy choice is numpy's argmax.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from llama.bench.task import Measured, Task
from llama.bench.work import Event, Trace, Work
from llama.bench.worker import since_start_s
from llama.errors import CheckpointError, LlamaError

_BATCH_TOKENS = 2048
"""llama.cpp's default; longer batches are decoded in parts."""


class Model:
    """A GGUF file, loaded, with room for the works of `task`."""

    def __init__(self, task: Task) -> None:
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(task.model).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot load {task.model}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = task.most_rows * (-(-(task.most_tokens + 1) // 256) * 256)
        params.n_batch = _BATCH_TOKENS
        params.n_seq_max = task.most_rows
        params.n_threads = params.n_threads_batch = task.contestant.n_threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise LlamaError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        self._batch: Any = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, rows: Sequence[Sequence[int]], *, start: int) -> list[int]:
        """Decode `rows`, one a sequence, from position `start`; the most probable next ids."""
        places = [
            (token, row, start + at, at + 1 == len(tokens))
            for row, tokens in enumerate(rows)
            for at, token in enumerate(tokens)
        ]
        chosen: list[int] = []
        for begin in range(0, len(places), _BATCH_TOKENS):
            part = places[begin : begin + _BATCH_TOKENS]
            self._decode(part)
            chosen += [self._best(at) for at, (*_, is_last) in enumerate(part) if is_last]
        return chosen

    def _decode(self, places: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(places)
        for at, (token, row, position, is_last) in enumerate(places):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = row
            batch.logits[at] = is_last
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise LlamaError(f"llama_decode returned {status} for {len(places)} tokens")

    def _best(self, at: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, at)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab_size,))))


def run(task: Task) -> Measured:
    """Every work once to warm up, then timed."""
    began = time.perf_counter()
    model = Model(task)
    figures = {"load_s": time.perf_counter() - began}
    traces = {}
    for number, work in enumerate(task.works):
        go_through(model, work.warm_up)
        if number == 0:
            figures["started_s"] = since_start_s()
        traces[work.name] = go_through(model, work)
    notes = [llama_cpp.llama_print_system_info().decode()]
    return Measured(traces=traces, figures=figures, notes=notes)


def go_through(model: Model, work: Work) -> Trace:
    model.forget()
    prompts = work.prompts(model.vocab_size)
    began = time.perf_counter()
    chosen = model.step(prompts, start=0)
    events = [Event(time.perf_counter() - began, work.batch, work.batch)]
    first_row = [chosen[0]]
    for done in range(1, work.new_tokens):
        chosen = model.step([[token] for token in chosen], start=work.prompt_tokens + done - 1)
        events.append(Event(time.perf_counter() - began, work.batch * (done + 1), work.batch))
        first_row.append(chosen[0])
    return Trace(events, first_row)
