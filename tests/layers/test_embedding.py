"""The vocabulary's two ends on real ranks, with a vocabulary that does not divide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from llama.layers.parameter import materialize
from llama.parallel.context import ParallelContext
from tests.helpers.fill import fill
from tests.helpers.ranks import run_layout

CPU = torch.device("cpu")
DIM = 6

SIZES = [
    *[(101, tp) for tp in (1, 2, 3, 4)],
    (100, 4),
    (5, 4),  # two rows each: the last rank holds padding alone
]


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


@pytest.mark.parametrize(("vocab_size", "tp"), SIZES)
def test_embedding_is_a_row_of_the_table(vocab_size: int, tp: int) -> None:
    run_layout(look_up, vocab_size, tp=tp)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "tp"), SIZES)
def test_logits_are_on_the_first_rank(vocab_size: int, tp: int, dtype: torch.dtype) -> None:
    run_layout(project, vocab_size, dtype, tp=tp)
