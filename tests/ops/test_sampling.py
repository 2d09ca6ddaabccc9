"""Draws against a plain version of the rules, one token at a time in Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llama.ops.sampling import Draws, best_tokens, finite_rows, sample


def draws(
    n_rows: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    uniform: list[float] | None = None,
) -> Draws:
    def column(value: float) -> Tensor:
        return torch.full((n_rows,), value, dtype=torch.float64)

    places = column(0.5) if uniform is None else torch.tensor(uniform, dtype=torch.float64)
    return Draws(column(temperature), column(top_p), column(top_k).long(), places)


def plain(
    logits: list[float], *, temperature: float, top_p: float, top_k: int, uniform: float
) -> int:
    """The rules of `sample` as they are written, for one row."""
    best = max(logits)
    weights = [math.exp((logit - best) / temperature) for logit in logits]
    total = math.fsum(weights)
    probs = [weight / total for weight in weights]
    order = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    order = order[: top_k or len(order)]
    mass = math.fsum(probs[token_id] for token_id in order)
    kept, before = [], 0.0
    for token_id in order:
        if before > top_p * mass:
            break
        kept.append(token_id)
        before += probs[token_id]
    target, upto = uniform * math.fsum(probs[token_id] for token_id in kept), 0.0
    for token_id in kept:
        upto += probs[token_id]
        if upto > target:
            return token_id
    return kept[-1]


def normal(n_rows: int, vocab_size: int, *, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randn(n_rows, vocab_size, generator=generator) * scale


def rounded(n_rows: int, vocab_size: int, *, scale: float) -> Tensor:
    """As a 16-bit head gives them: many equal logits."""
    return normal(n_rows, vocab_size, scale=scale).bfloat16().float()


def equal(n_rows: int, vocab_size: int, *, scale: float) -> Tensor:
    return torch.full((n_rows, vocab_size), scale)


@pytest.mark.parametrize("make", [normal, rounded, equal])
@pytest.mark.parametrize("vocab_size", [1, 7, 256, 257, 1500])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_a_draw_equals_the_plain_rules(
    make: Callable[..., Tensor], vocab_size: int, scale: float
) -> None:
    n_rows = 40
    logits = make(n_rows, vocab_size, scale=scale)
    generator = torch.Generator().manual_seed(1)
    spread = torch.rand(4, n_rows, generator=generator, dtype=torch.float64)
    how = Draws(
        temperature=spread[0] * 2 + 0.05,
        top_p=torch.where(spread[1] < 0.3, 1.0, spread[1]),
        top_k=torch.where(spread[2] < 0.5, 0, spread[2] * 1.2 * vocab_size).long(),
        uniform=spread[3],
    )
    expected = [
        plain(
            logits[row].tolist(),
            temperature=float(how.temperature[row]),
            top_p=float(how.top_p[row]),
            top_k=int(how.top_k[row]),
            uniform=float(how.uniform[row]),
        )
        for row in range(n_rows)
    ]
    assert sample(logits, how).tolist() == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
    st.integers(0, 14),
    st.integers(0, 2**53 - 1),
)
def test_a_small_draw_equals_the_plain_rules(
    logits: list[float], temperature: float, top_p: float, top_k: int, uniform_bits: int
) -> None:
    uniform = uniform_bits * 2.0**-53
    how = draws(1, temperature=temperature, top_p=top_p, top_k=top_k, uniform=[uniform])
    got = int(sample(torch.tensor([logits]), how))
    # A draw within rounding of an edge may fall to either side of it.
    accepted = {
        plain(logits, temperature=temperature, top_p=p, top_k=top_k, uniform=u)
        for p in (top_p * (1 - 1e-12), top_p, top_p * (1 + 1e-12))
        for u in (uniform * (1 - 1e-12), uniform, min(uniform * (1 + 1e-12), 1 - 2**-53))
    }
    assert got in accepted


def test_the_token_that_crosses_top_p_stays() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    last = [1 - 2**-53]
    kept = [int(sample(logits, draws(1, top_p=p, uniform=last))) for p in (0.1, 0.49, 0.51, 0.74)]
    assert kept == [0, 0, 1, 1]


def test_edges_belong_to_the_side_that_the_rules_say() -> None:
    logits = torch.zeros(4, 4)  # probabilities that floats hold exactly
    assert sample(logits, draws(4, uniform=[0.0, 0.25, 0.5, 0.75])).tolist() == [0, 1, 2, 3]
    last = [1 - 2**-53] * 4
    # Two tokens make top_p = 0.5 exactly, not more: the third stays.
    assert sample(logits, draws(4, top_p=0.5, uniform=last)).tolist() == [2] * 4


def test_at_least_one_token_stays() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert sample(logits, draws(1, top_p=5e-324, uniform=[uniform])).tolist() == [1]
        assert sample(logits, draws(1, top_k=1, uniform=[uniform])).tolist() == [1]


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # After top_k = 2 the first token has 4/7 = 0.571 of the mass, above 0.5: alone in the nucleus.
    last = [1 - 2**-53]
    assert sample(logits, draws(1, top_k=2, top_p=0.5, uniform=last)).tolist() == [0]
    assert sample(logits, draws(1, top_k=0, top_p=0.5, uniform=last)).tolist() == [1]


@pytest.mark.parametrize("vocab_size", [4, 1000])
def test_the_smallest_temperature_is_greedy_without_overflow(vocab_size: int) -> None:
    logits = normal(6, vocab_size, scale=1e30)
    for temperature in (1e-300, 1e-38, 1e-7):
        for uniform in (0.0, 1 - 2**-53):
            how = draws(6, temperature=temperature, uniform=[uniform] * 6)
            assert sample(logits, how).tolist() == logits.argmax(dim=-1).tolist()


def test_a_high_temperature_is_uniform() -> None:
    logits = torch.tensor([[0.0, 100.0, -100.0, 50.0]]).expand(4, 4)
    how = draws(4, temperature=1e308, uniform=[0.1, 0.3, 0.6, 0.9])
    assert sample(logits, how).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("vocab_size", [20, 600])
def test_an_impossible_token_is_never_drawn(vocab_size: int) -> None:
    # The last place: sums that come out a little below 1 must not lead beyond the possible tokens.
    n_rows, n_possible = 200, 15
    logits = torch.full((n_rows, vocab_size), -2000.0)
    logits[:, :n_possible] = normal(n_rows, n_possible, scale=1.0)
    for top_p, top_k in [(1.0, 0), (0.999, 0), (1.0, 18)]:
        how = draws(n_rows, top_p=top_p, top_k=top_k, uniform=[1 - 2**-53] * n_rows)
        assert sample(logits, how).max() < n_possible


@pytest.mark.parametrize("vocab_size", [5, 600])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 40), (0.6, 300)])
def test_frequencies_follow_the_distribution(vocab_size: int, top_p: float, top_k: int) -> None:
    n = 4000
    row = normal(1, vocab_size, scale=1.5)
    # Evenly spread places in place of random ones: every count is then exact to one.
    uniform = [(place + 0.5) / n for place in range(n)]
    tokens = sample(row.expand(n, -1), draws(n, top_p=top_p, top_k=top_k, uniform=uniform))
    counts = torch.bincount(tokens, minlength=vocab_size).double()
    probs = row[0].double().softmax(-1)
    order = probs.argsort(descending=True, stable=True)
    kept = order[: top_k or vocab_size]
    before = probs[kept].cumsum(0) - probs[kept]
    kept = kept[before <= top_p * probs[kept].sum()]
    expected = torch.zeros_like(probs)
    expected[kept] = probs[kept] / probs[kept].sum()
    assert (counts - expected * n).abs().max() <= 1
    assert counts[expected == 0].sum() == 0


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = torch.cat([rounded(20, 2000, scale=s) for s in (0.05, 1.0, 8.0)])
    generator = torch.Generator().manual_seed(3)
    spread = torch.rand(4, 60, generator=generator, dtype=torch.float64)
    top_k = (spread[2] * 400).long() * (spread[2] < 0.5)
    how = Draws(spread[0] + 0.1, spread[1].clamp(min=0.01), top_k, spread[3])
    together = sample(logits, how)
    one_by_one = [sample(logits[r : r + 1], how[torch.tensor([r])]) for r in range(60)]
    assert together.tolist() == torch.cat(one_by_one).tolist()
    backwards = torch.arange(59, -1, -1)
    assert sample(logits[backwards], how[backwards]).tolist() == together.flip(0).tolist()


@pytest.mark.parametrize("make", [normal, rounded, equal])
@pytest.mark.parametrize(("vocab_size", "k"), [(1, 1), (6, 0), (6, 6), (6, 9), (400, 1), (400, 20)])
def test_best_tokens_are_ordered_and_ties_go_to_lower_ids(
    make: Callable[..., Tensor], vocab_size: int, k: int
) -> None:
    logits = make(15, vocab_size, scale=1.0)
    expected = logits.argsort(dim=-1, descending=True, stable=True)[:, :k]
    assert best_tokens(logits, k).tolist() == expected.tolist()


def test_finite_rows() -> None:
    logits = torch.zeros(5, 4)
    logits[1, 2], logits[2, 0], logits[3, 3] = math.nan, math.inf, -math.inf
    logits[4] = torch.tensor([3.4e38, -3.4e38, 0, 0])
    assert finite_rows(logits).tolist() == [True, False, False, False, True]
