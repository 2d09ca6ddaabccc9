"""From the logits of one step to its StepResult. Runs on one rank; all others are told.

Keeps nothing between steps: what a request draws depends on its logits, its parameters, its seed
and the number of the token, and on no other request, batch or layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from llama.engine.plan import BatchPlan, DrawParams, SequenceResult, StepResult
from llama.engine.sequence import TokenLogprob
from llama.ops.sampling import Draws, best_token, best_tokens, sample


class Sampler:
    """Draws the tokens and looks up the logprobs that a plan asks for."""

    def __call__(self, logits: Tensor, scored: Tensor, plan: BatchPlan) -> StepResult:
        """In plan order, `logits` (R, vocab) float32 has one row for each sequence that samples,
        `scored` (T,) float32 the logprob of each target.

        A sequence with a row of logits, or a logprob, that is not finite gets no token, only the
        position; the others get theirs.
        """
        if logits.device.type == "mps":  # which has no float64
            logits = logits.cpu()
        draws = [planned.draw for planned in plan.sequences if planned.draw is not None]
        assert len(draws) == len(logits)
        logprobs = _by_sequence(scored, plan)
        token_ids, finite = best_token(logits)
        overflows = _overflows(finite, logprobs, plan)
        if overflows:
            logits = logits.where(finite[:, None], 0.0)  # what is drawn there goes to nobody
        _draw_where_random(token_ids, logits, draws)
        sampled = zip(token_ids.tolist(), _sampled_logprobs(logits, token_ids, draws), strict=True)
        results = []
        for planned, target_logprobs in zip(plan.sequences, logprobs, strict=True):
            token_id, logprob = next(sampled) if planned.draw is not None else (-1, None)
            if planned.seq_id in overflows:
                results.append(SequenceResult(overflow_at=overflows[planned.seq_id]))
            else:
                results.append(SequenceResult(token_id, logprob, target_logprobs))
        return StepResult(tuple(results))


def _by_sequence(scored: Tensor, plan: BatchPlan) -> list[tuple[float, ...]]:
    """Each sequence's part of `scored`."""
    ends = accumulate((len(planned.targets) for planned in plan.sequences), initial=0)
    values = scored.tolist()
    return [tuple(values[start:stop]) for start, stop in pairwise(ends)]


def _select(logits: Tensor, rows: list[int]) -> Tensor:
    """Rows of `logits` (R, vocab); without a copy when it is all of them, as in decode."""
    if len(rows) == len(logits):
        return logits
    return logits[torch.tensor(rows, dtype=torch.int64, device=logits.device)]


def _overflows(
    finite: Tensor, logprobs: list[tuple[float, ...]], plan: BatchPlan
) -> dict[int, int]:
    """By seq_id the first position with logits that are not finite; `finite` (R,) bool."""
    rows_are_finite, found = iter(finite.tolist()), {}
    for planned, scores in zip(plan.sequences, logprobs, strict=True):
        rows = [row for row, score in enumerate(scores) if not math.isfinite(score)]
        if planned.draw is not None and not next(rows_are_finite):
            rows.append(len(planned.token_ids) - 1)
        if rows:
            found[planned.seq_id] = planned.start + rows[0]
    return found


def _draw_where_random(token_ids: Tensor, logits: Tensor, draws: Sequence[DrawParams]) -> None:
    """`token_ids` (R,) are the best ones, and stay at temperature 0; others become random ones."""
    rows = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if rows:
        token_ids[rows] = sample(
            _select(logits, rows), _columns([draws[row] for row in rows], logits.device)
        )


def _columns(draws: Sequence[DrawParams], device: torch.device) -> Draws:
    fields = [(draw.temperature, draw.top_p, draw.uniform) for draw in draws]
    columns = torch.tensor(fields, dtype=torch.float64, device=device).T  # (3, R)
    top_k = torch.tensor([draw.top_k for draw in draws], dtype=torch.int64, device=device)
    return Draws(temperature=columns[0], top_p=columns[1], top_k=top_k, uniform=columns[2])


def _sampled_logprobs(
    logits: Tensor, token_ids: Tensor, draws: Sequence[DrawParams]
) -> list[TokenLogprob | None]:
    """For each row, what it asked for."""
    found: list[TokenLogprob | None] = [None] * len(draws)
    rows = [row for row, draw in enumerate(draws) if draw.n_logprobs >= 0]
    if not rows:
        return found
    logits = _select(logits, rows)
    scores = logits.log_softmax(dim=-1)
    token_ids = token_ids[rows]
    own = scores.gather(-1, token_ids[:, None])[:, 0].tolist()
    most = max(draws[row].n_logprobs for row in rows)
    top_ids = best_tokens(logits, most)  # (R, most)
    top_scores = scores.gather(-1, top_ids).tolist()
    records = zip(rows, token_ids.tolist(), own, top_ids.tolist(), top_scores, strict=True)
    for row, token_id, score, ids, ids_scores in records:
        top = tuple(zip(ids, ids_scores, strict=True))[: draws[row].n_logprobs]
        found[row] = TokenLogprob(token_id, score, top)
    return found
