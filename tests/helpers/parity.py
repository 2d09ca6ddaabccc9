"""How far the engine is from recorded answers of a reference, as one rank sees it.

Imported by ranks: the library that the answers come from is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama.engine.engine import Engine
from llama.engine.exchange import FinishedSequence
from llama.engine.score import ScoreOutput
from llama.engine.sequence import SamplingParams
from llama.models.record import Recorder
from llama.parallel.context import ParallelContext
from tests.helpers.engines import make_engine

SCORING = SamplingParams(max_tokens=0, prompt_logprobs=True)


@dataclass(frozen=True)
class Reference:
    """What the reference says to one prompt.

    `logits` (n_prompt, vocab_size). `hidden_states`: n_layers + 1 of (n_prompt, dim).
    `attentions`: n_layers of (n_heads, n_prompt, n_prompt). `loss` is the mean over the prompt's
    tokens but the first; `greedy` are the tokens that follow.
    """

    prompt: list[int]
    logits: Tensor
    hidden_states: list[Tensor]
    attentions: list[Tensor]
    loss: float
    greedy: list[int]


@dataclass(frozen=True)
class Distance:
    """Largest absolute differences, and the tokens that the engine chose as `greedy`.

    `generated` is between the log-probabilities of these tokens while they were generated, and
    those found by scoring prompt and answer in one pass.
    """

    logits: float
    hidden_states: float
    attentions: float
    row_sums: float
    loss: float
    generated: float
    greedy: list[int] = field(repr=False)


def distances(
    context: ParallelContext, folder: str, references: Sequence[Reference], options: dict[str, Any]
) -> list[Distance]:
    """One per reference; all prompts are scored together, and generated from together.

    Collective over the world.
    """
    engine = make_engine(context, folder, max_seq_len=longest(references), **options)
    prompts = [r.prompt for r in references]
    scored = engine.generate(prompts, [SCORING] * len(prompts))  # as LLM.score does
    greedy = [
        SamplingParams(temperature=0.0, max_tokens=len(r.greedy), logprobs=0) for r in references
    ]
    generated = engine.generate(prompts, greedy)
    texts = [[*answer.prompt_token_ids, *answer.token_ids] for answer in generated]
    rescored = engine.generate(texts, [SCORING] * len(texts))
    return [
        _distance(
            engine,
            reference,
            loss=ScoreOutput(score.prompt_token_ids, score.prompt_logprobs or ()).loss,
            answer=answer,
            rescored=(again.prompt_logprobs or ())[len(reference.prompt) :],
        )
        for reference, score, answer, again in zip(
            references, scored, generated, rescored, strict=True
        )
    ]


def longest(references: Sequence[Reference]) -> int:
    """Tokens of the longest prompt and its answer."""
    return max(len(r.prompt) + len(r.greedy) for r in references)


def _distance(
    engine: Engine,
    reference: Reference,
    *,
    loss: float,
    answer: FinishedSequence,
    rescored: Sequence[float | None],
) -> Distance:
    ids = torch.tensor([reference.prompt])
    usual = engine.look_inside(ids, 0, Recorder(hidden_states=True))
    weighed = engine.look_inside(ids, 0, Recorder(attentions=True))  # on attention of its own
    assert usual.hidden_states is not None and weighed.attentions is not None
    sums = torch.stack(weighed.attentions).sum(dim=-1)
    return Distance(
        logits=_largest([usual.logits[0], weighed.logits[0]], [reference.logits] * 2),
        hidden_states=_largest([x[0] for x in usual.hidden_states], reference.hidden_states),
        attentions=_largest([x[0] for x in weighed.attentions], reference.attentions),
        row_sums=float((sums - 1).abs().max()),
        loss=abs(loss - reference.loss),
        generated=_largest(
            [torch.tensor([item.logprob for item in answer.logprobs or ()])],
            [torch.tensor(rescored)],
        ),
        greedy=list(answer.token_ids),
    )


def _largest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """A difference in shape is an error; NaN is infinitely far."""
    worst = [(x - y).abs().nan_to_num(torch.inf).max() for x, y in zip(ours, theirs, strict=True)]
    assert all(x.shape == y.shape for x, y in zip(ours, theirs, strict=True))
    return float(max(worst))


def logits_in_bf16(
    context: ParallelContext, folder: str, prompts: Sequence[list[int]]
) -> list[Tensor]:
    """(n_prompt, vocab_size) of every prompt by itself. Collective over the world."""
    longest_prompt = max(map(len, prompts))
    engine = make_engine(context, folder, max_seq_len=longest_prompt, dtype=torch.bfloat16)
    return [engine.forward_rows(torch.tensor([prompt]), 0)[0] for prompt in prompts]
