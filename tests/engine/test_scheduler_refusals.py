"""What the scheduler refuses: requests that could never run, results that belong to no plan."""

from __future__ import annotations

from typing import Any

import pytest

from llama.engine.plan import SequenceResult, StepResult
from llama.engine.sequence import SamplingParams, Sequence
from llama.errors import LlamaError, UsageError
from tests.helpers.replica import VOCAB_SIZE, Replica


def request(prompt: list[Any], **params: Any) -> Sequence:
    return Sequence(7, prompt, SamplingParams(**params), seed=0)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (request([]), "request 7 has an empty prompt"),
        (request([1] * 65), "a prompt of 65 tokens, max_seq_len is 64; shorten"),
        (request([1, 50]), "prompt token 1 is 50; ids are integers from 0 to 49"),
        (request([-1]), "prompt token 0 is -1"),
        (request([True]), "prompt token 0 is True"),
        (request([1.0]), "prompt token 0 is 1.0"),
        (request([1], stop_token_ids=(3, 50)), "stop_token_ids 1 is 50"),
        (
            request([1] * 33),
            "needs 12 KV blocks of 4 tokens, but the cache has 8; lower max_tokens",
        ),
        (request([1], max_tokens=None), "may reach 64 tokens, 1 of them prompt"),
    ],
)
def test_what_can_never_run_is_refused(sequence: Sequence, message: str) -> None:
    scheduler = Replica(num_blocks=8).scheduler
    for refuse in (scheduler.check, scheduler.add):
        with pytest.raises(UsageError, match=message):
            refuse(sequence)
    assert not scheduler.has_unfinished


def test_a_number_in_use_is_refused() -> None:
    replica = Replica()
    replica.scheduler.add(request([1, 2]))
    with pytest.raises(UsageError, match="request 7 is already there"):
        replica.scheduler.add(request([1, 2]))


def test_max_in_flight_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="max_in_flight"):
        Replica(max_in_flight=0)


def test_results_that_do_not_belong_are_refused() -> None:
    replica = Replica(max_in_flight=2, max_num_batched_tokens=4)
    replica.add(8, prompt_logprobs=True)
    first, second = replica.schedule(), replica.schedule()
    assert first is not None
    assert second is not None
    right = replica.out[0][1]
    with pytest.raises(LlamaError, match="not the oldest of 2 plans"):
        replica.scheduler.update(second, right)
    with pytest.raises(LlamaError, match="0 results came back for 1"):
        replica.scheduler.update(first, StepResult(()))
    with pytest.raises(LlamaError, match="0 prompt logprobs came back for 4 tokens"):
        replica.scheduler.update(first, StepResult((SequenceResult(),)))


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    replica = Replica()
    replica.add(3)
    plan = replica.schedule()
    assert plan is not None
    with pytest.raises(LlamaError, match=f"token id {token_id} was sampled"):
        replica.scheduler.update(plan, StepResult((SequenceResult(token_id),)))
