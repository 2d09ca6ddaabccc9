"""transformers' own `generate` at work: greedy, with its default cache."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from llama.bench.task import Measured, Task
from llama.bench.work import Event, Trace, Work
from llama.bench.worker import since_start_s


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing: it is asked after every step, and notes when."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.began = time.perf_counter()
        self.events: list[Event] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        at_s = time.perf_counter() - self.began
        n_tokens = self.batch * (len(self.events) + 1)
        self.events.append(Event(at_s, n_tokens, self.batch))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def run(task: Task) -> Measured:
    """Every work once to warm up, then timed."""
    began = time.perf_counter()
    dtype = getattr(torch, task.contestant.dtype)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype).to(task.device)
    figures = {"load_s": time.perf_counter() - began}
    traces = {}
    for number, work in enumerate(task.works):
        go_through(model, work.warm_up)
        if number == 0:
            figures["started_s"] = since_start_s()
        traces[work.name] = go_through(model, work)
    return Measured(traces=traces, figures=figures)


def go_through(model: Any, work: Work) -> Trace:
    prompts = torch.tensor(work.prompts(model.config.vocab_size), device=model.device)
    clock = Clock(work.batch)
    with torch.inference_mode():
        found = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return Trace(clock.events, found[0, work.prompt_tokens :].tolist())
