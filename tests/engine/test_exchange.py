"""Finished sequences survive the trip to the other ranks bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from llama.engine.exchange import FinishedSequence, share_results
from llama.engine.sequence import SamplingParams, Sequence, TokenLogprob
from llama.parallel.context import ParallelContext
from tests.helpers.ranks import run_layout

AWKWARD = (-0.1, -1e-45, -math.inf, -0.0)


def result(index: int) -> FinishedSequence:
    logprobs = tuple(TokenLogprob(i, v, ((i, v), (7, -2.5))) for i, v in enumerate(AWKWARD))
    return FinishedSequence(
        prompt_token_ids=tuple(range(index + 1)),
        token_ids=(1, 2, 3, index),
        logprobs=logprobs if index % 2 else None,
        prompt_logprobs=(None, *AWKWARD) if index % 3 else None,
        finish_reason="stop",
    )


@pytest.mark.parametrize("index", range(6))
def test_json_brings_back_the_same_record(index: int) -> None:
    fields = json.loads(json.dumps(asdict(result(index))))
    assert FinishedSequence.from_fields(fields) == result(index)


def test_of_a_sequence_keeps_only_what_was_asked_for() -> None:
    plain = Sequence(0, (1, 2), SamplingParams(), seed=0)
    plain.append(9, None, max_seq_len=10)
    plain.finish("length")
    assert FinishedSequence.of(plain) == FinishedSequence((1, 2), (9,), None, None, "length")


def share(context: ParallelContext) -> list[FinishedSequence]:
    """Each replica's leader holds its own results, every other rank none."""
    dp_rank, dp_size = context.coordinates.dp_rank, context.layout.dp_size
    mine = {i: result(i) for i in range(dp_rank, 5, dp_size)} if context.is_leader else {}
    return share_results(mine, 5, context=context)


@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_every_rank_gets_every_result(tp: int, pp: int, dp: int) -> None:
    for got in run_layout(share, tp=tp, pp=pp, dp=dp):
        assert got == [result(i) for i in range(5)]
