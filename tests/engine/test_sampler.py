"""A request's draws follow its own distribution and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence, SequenceResult, StepResult
from llama.engine.sampler import Sampler

GREEDY = DrawParams(temperature=0.0, top_p=1.0, top_k=0, seed=1, step=0)


def draw(
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 1,
    step: int = 0,
    n_logprobs: int = -1,
) -> DrawParams:
    return DrawParams(temperature, top_p, top_k, seed, step, n_logprobs)


def planned(
    how: DrawParams | None,
    *,
    seq_id: int = 0,
    n_new: int = 1,
    start: int = 4,
    targets: tuple[int, ...] = (),
) -> PlannedSequence:
    new = tuple(range(n_new))
    return PlannedSequence(seq_id, new, start, 1, (0,), how is not None, how, targets)


def run(
    logits: Tensor, *sequences: PlannedSequence, scored: Sequence[float] = ()
) -> tuple[SequenceResult, ...]:
    with torch.inference_mode():
        result = Sampler()(logits, torch.tensor(scored), BatchPlan(sequences))
    assert StepResult.decode(result.encode()) == result
    return result.sequences


def rows(n: int, vocab_size: int = 300, *, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, vocab_size, generator=generator) * scale


def token_ids(results: tuple[SequenceResult, ...]) -> list[int]:
    return [result.token_id for result in results]


def test_greedy_takes_the_lowest_of_the_best() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-5.0, -7.0, -1.0]])
    assert token_ids(run(logits, *[planned(GREEDY)] * 3)) == [1, 0, 2]


def test_greedy_ignores_filters_and_seed() -> None:
    logits = rows(1)
    for how in (draw(temperature=-0.0, top_p=0.01, top_k=5, seed=9, step=3), GREEDY):
        assert token_ids(run(logits, planned(how))) == logits.argmax(dim=-1).tolist()


def test_many_seeds_follow_the_distribution() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.05, 0.2, 0.25]]).log()
    n = 5000
    for how in (
        [planned(draw(seed=seed)) for seed in range(n)],
        [planned(draw(seed=-7, step=step)) for step in range(n)],
    ):
        tokens = torch.tensor(token_ids(run(logits.expand(n, -1), *how)))
        counts = torch.bincount(tokens, minlength=5).double()
        expected = logits[0].exp().double() * n
        # Chi-square with 4 degrees of freedom exceeds 18.5 once in a thousand; the seeds are fixed.
        assert float(((counts - expected) ** 2 / expected).sum()) < 18.5


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    n = 5000
    how = [planned(draw(temperature=0.5, seed=seed)) for seed in range(n)]
    counts = torch.bincount(torch.tensor(token_ids(run(logits.expand(n, -1), *how))), minlength=3)
    squares = torch.tensor([0.25, 0.09, 0.04])
    expected = squares / squares.sum() * n
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.9  # 2 degrees of freedom


def test_a_token_depends_on_logits_seed_and_step_only() -> None:
    logits = rows(40)
    how = [
        draw(temperature=0.3 + row % 5, top_p=0.5 + row % 2 / 2, top_k=row % 3 * 20, seed=row)
        for row in range(39)
    ] + [GREEDY]
    together = token_ids(run(logits, *[planned(h, seq_id=i) for i, h in enumerate(how)]))
    alone = [
        token_ids(run(logits[row : row + 1], planned(how[row], seq_id=99, start=0)))[0]
        for row in range(40)
    ]
    assert together == alone
    beside_a_prompt = run(
        logits[7:8],
        planned(None, n_new=9),
        planned(None, n_new=3, targets=(1, 2, 3)),
        planned(how[7]),
        scored=[-1.0, -2.0, -3.0],
    )
    assert beside_a_prompt[2].token_id == together[7]


def test_steps_and_seeds_vary_the_token() -> None:
    logits = torch.zeros(1, 1000).expand(60, -1)
    how = [draw(seed=seed, step=step) for seed in range(6) for step in range(10)]
    assert len(set(token_ids(run(logits, *map(planned, how))))) > 50


def test_logprobs_are_of_the_plain_softmax() -> None:
    logits = rows(3)
    how = [
        draw(temperature=0.2, top_k=2, n_logprobs=3),
        draw(temperature=0.0, n_logprobs=0),
        draw(n_logprobs=-1),
    ]
    first, second, third = run(logits, *map(planned, how))
    expected = logits.double().log_softmax(dim=-1)
    assert first.logprob is not None
    assert first.logprob.token_id == first.token_id
    assert first.logprob.logprob == pytest.approx(float(expected[0, first.token_id]), abs=1e-5)
    best = expected[0].topk(3)
    assert [token_id for token_id, _ in first.logprob.top] == best.indices.tolist()
    assert [score for _, score in first.logprob.top] == pytest.approx(
        best.values.tolist(), abs=1e-5
    )
    assert second.logprob is not None
    assert (second.logprob.token_id, second.logprob.top) == (second.token_id, ())
    assert third.logprob is None


def test_more_alternatives_than_tokens() -> None:
    (result,) = run(torch.tensor([[0.0, 1.0]]), planned(draw(n_logprobs=20)))
    assert result.logprob is not None
    assert [token_id for token_id, _ in result.logprob.top] == [1, 0]


def test_scores_go_to_the_sequences_that_asked() -> None:
    logits = rows(2)
    chunk, last, decode, silent = run(
        logits,
        planned(None, n_new=2, targets=(7, 8)),
        planned(GREEDY, n_new=3, targets=(5, 6)),
        planned(GREEDY),
        planned(None, n_new=4),
        scored=[-0.5, -1.5, -2.5, -3.5],
    )
    assert (chunk.target_logprobs, last.target_logprobs) == ((-0.5, -1.5), (-2.5, -3.5))
    assert (chunk.token_id, silent) == (-1, SequenceResult())
    assert [last.token_id, decode.token_id] == logits.argmax(dim=-1).tolist()
    assert decode.target_logprobs == ()


def test_nothing_to_sample() -> None:
    assert run(torch.empty(0, 300), planned(None, n_new=5)) == (SequenceResult(),)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", [GREEDY, draw()])
@pytest.mark.parametrize("is_scored", [False, True])
def test_what_is_not_finite_spoils_no_other_sequence(
    value: float, how: DrawParams, is_scored: bool
) -> None:
    logits, scored = rows(3), [-1.0, -2.0, -3.0]
    if is_scored:
        scored[2] = value
    else:
        logits[1, 17] = value
    sequences = [
        planned(None, seq_id=10, n_new=7, targets=(4,)),
        planned(how, seq_id=11),
        planned(how, seq_id=12, n_new=3, start=20, targets=(1, 2)),
        planned(how, seq_id=13),
    ]
    found = run(logits, *sequences, scored=scored)
    assert found[2] == SequenceResult(overflow_at=21 if is_scored else 22)
    wanted = run(rows(3), *sequences, scored=[-1.0, -2.0, -3.0])
    assert (*found[:2], found[3]) == (*wanted[:2], wanted[3])
