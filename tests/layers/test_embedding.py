"""The vocabulary's two ends on real ranks, with a vocabulary that does not divide."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from llama.layers.embedding import (
    ROWS_AT_ONCE,
    ParallelLMHead,
    PositionEmbedding,
    VocabParallelEmbedding,
)
from llama.layers.parameter import materialize
from llama.parallel.context import ParallelContext
from tests.helpers.cases import run_cases
from tests.helpers.fill import fill

CPU = torch.device("cpu")
DIM = 6

SIZES = {1: [101], 2: [101], 3: [101], 4: [101, 100, 5]}
"""By tp_size. Of 5 words on 4 ranks each has two rows, and the last holds padding alone."""


def table(vocab_size: int) -> torch.Tensor:
    return torch.randn(vocab_size, DIM, generator=torch.Generator().manual_seed(0))


def look_up(context: ParallelContext, vocab_size: int) -> None:
    layer = VocabParallelEmbedding(vocab_size, DIM, tp=context.tp, name="wa", dtype=torch.float32)
    materialize(layer, CPU)
    fill(layer, {"wa.weight": table(vocab_size)})
    token_ids = torch.tensor([0, vocab_size - 1, *range(vocab_size), 2, 2])
    before = token_ids.clone()
    assert torch.equal(layer(token_ids), table(vocab_size)[token_ids])
    assert torch.equal(token_ids, before)


@pytest.mark.parametrize("tp", SIZES)
def test_embedding_is_a_row_of_the_table(tp: int) -> None:
    run_cases(look_up, [(vocab_size,) for vocab_size in SIZES[tp]], tp=tp)


def project(context: ParallelContext, vocab_size: int, dtype: torch.dtype) -> None:
    layer = ParallelLMHead(vocab_size, DIM, tp=context.tp, name="wa", dtype=dtype)
    materialize(layer, CPU)
    fill(layer, {"wa.weight": table(vocab_size)})
    for n_rows in (4, 1, 0):
        hidden = torch.randn(n_rows, DIM, generator=torch.Generator().manual_seed(1)).to(dtype)
        logits = layer(hidden)
        if context.tp.rank:
            assert logits is None
            continue
        expected = F.linear(hidden.float(), table(vocab_size).to(dtype).float())
        assert logits.dtype == torch.float32
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tp", SIZES)
def test_logits_are_on_the_first_rank(tp: int) -> None:
    run_cases(project, list(product(SIZES[tp], (torch.float32, torch.bfloat16))), tp=tp)


def score(context: ParallelContext, n_words: int, dtype: torch.dtype) -> None:
    """More than one tile, every word a target; one row overflows, and one is far from zero."""
    layer = ParallelLMHead(101, DIM, tp=context.tp, name="wa", dtype=dtype)
    materialize(layer, CPU)
    fill(layer, {"wa.weight": table(101)})
    hidden = torch.randn(ROWS_AT_ONCE + 9, DIM, generator=torch.Generator().manual_seed(1))
    hidden[3, 0], hidden[5] = torch.inf, hidden[5] * 1000
    hidden, targets = hidden.to(dtype), torch.arange(len(hidden)) % n_words
    logits = F.linear(hidden.double(), table(101).to(dtype).double())[:, :n_words]
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].float()
    expected[3] = torch.nan
    with torch.inference_mode():
        logprobs = layer.logprobs(hidden, targets, n_words)
        assert layer.logprobs(hidden[:0], targets[:0], n_words).shape == (0,)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(logprobs, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_logprobs_are_those_of_all_words_on_every_rank(tp: int) -> None:
    """Also when rows are no words, and when the first rank has every word."""
    dtypes = (torch.float32, torch.bfloat16)
    run_cases(score, list(product((101, 99, 33), dtypes)), tp=tp)


def test_a_position_is_a_row_of_its_table() -> None:
    layer = PositionEmbedding(9, DIM, name="wa", dtype=torch.float32)
    materialize(layer, CPU)
    fill(layer, {"wa.weight": table(9)})
    positions = torch.tensor([8, 0, 3, 3])
    assert torch.equal(layer(positions), table(9)[positions])
