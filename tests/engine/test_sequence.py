"""What a request may ask for, and when a sequence ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from llama.engine.sequence import (
    INT64_MAX,
    INT64_MIN,
    RequestOutput,
    SamplingParams,
    Sequence,
    TokenLogprob,
    mix64,
)
from llama.errors import UsageError

REFUSED: dict[str, list[Any]] = {
    "temperature": [-0.001, float("nan"), float("inf"), 1e309, 10**400, True, "1", None],
    "top_p": [0, -0.1, 1.0000001, float("nan"), True, "0.9", None],
    "top_k": [-1, 1.5, True, None, 2**63],
    "seed": [INT64_MIN - 1, INT64_MAX + 1, 1.0, True, "7"],
    "max_tokens": [-1, 2.0, True],
    "stop": ["", [""], ["a", 1], ["x"] * 17, b"x", 3, None],
    "stop_token_ids": [[-1], [1.0], [True], 5, "12", None],
    "logprobs": [-1, 21, True, 1.0],
    "ignore_eos": [0, None, "yes"],
    "prompt_logprobs": [1, None],
}
ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, -0.0, 1e-320, 1e308, 2],
    "top_p": [5e-324, 1, 0.9],
    "top_k": [0, 1, INT64_MAX],
    "seed": [None, INT64_MIN, 0, INT64_MAX],
    "max_tokens": [None, 1, INT64_MAX],
    "logprobs": [None, 0, 20],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in ACCEPTED.items() for v in vs])
def test_values_at_the_edge_are_accepted(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_lists_become_tuples_and_one_string_is_one_stop() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3, 4])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (3, 4))
    assert SamplingParams(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert isinstance(SamplingParams(temperature=1).temperature, float)
    hash(params)


def make(params: SamplingParams, prompt: tuple[int, ...] = (5, 6)) -> Sequence:
    return Sequence(0, prompt, params, seed=1, eos_token_ids=[2])


def append(sequence: Sequence, *token_ids: int, max_seq_len: int = 100) -> None:
    for token_id in token_ids:
        sequence.append(token_id, TokenLogprob(token_id, -1.0), max_seq_len=max_seq_len)


def test_max_tokens_ends_with_length() -> None:
    sequence = make(SamplingParams(max_tokens=3))
    append(sequence, 7, 8)
    assert not sequence.is_finished
    append(sequence, 9)
    assert (sequence.finish_reason, sequence.output_token_ids) == ("length", [7, 8, 9])
    assert sequence.token_ids == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_max_seq_len_ends_with_length(max_tokens: int | None) -> None:
    sequence = make(SamplingParams(max_tokens=max_tokens))
    append(sequence, 7, max_seq_len=4)
    assert not sequence.is_finished
    append(sequence, 8, max_seq_len=4)
    assert sequence.finish_reason == "length"


def test_the_stop_token_and_its_logprob_are_kept_out() -> None:
    sequence = make(SamplingParams(logprobs=0))
    append(sequence, 7, 2)
    assert (sequence.finish_reason, sequence.stop_token_id) == ("stop", 2)
    assert sequence.output_token_ids == [7]
    assert [logprob.token_id for logprob in sequence.logprobs] == [7]


def test_a_stop_token_wins_over_length() -> None:
    sequence = make(SamplingParams(max_tokens=1))
    append(sequence, 2)
    assert (sequence.finish_reason, sequence.output_token_ids) == ("stop", [])


def test_ignore_eos_ignores_the_tokenizers_end_tokens_only() -> None:
    sequence = make(SamplingParams(ignore_eos=True, stop_token_ids=(9,)))
    append(sequence, 2)
    assert not sequence.is_finished
    append(sequence, 9)
    assert sequence.stop_token_id == 9


def test_a_stop_token_in_the_prompt_stops_nothing() -> None:
    sequence = make(SamplingParams(), prompt=(2, 2))
    append(sequence, 7)
    assert not sequence.is_finished


def test_prompt_logprobs_come_once_whatever_the_chunks() -> None:
    sequence = make(SamplingParams(prompt_logprobs=True), prompt=(10, 11, 12, 13, 14))
    assert sequence.targets(0, 2) == (11, 12)
    sequence.add_prompt_logprobs([1.0, 2.0], first=1)
    # Computed again from the start after a preemption, in other chunks.
    assert sequence.targets(0, 1) == ()
    assert sequence.targets(0, 4) == (11, 12, 13, 14)
    sequence.add_prompt_logprobs([1.5, 2.5, 3.0, 4.0], first=1)
    assert sequence.prompt_logprobs == [None, 1.0, 2.0, 3.0, 4.0]
    assert sequence.targets(0, 5) == ()


def test_no_targets_unless_asked() -> None:
    assert make(SamplingParams()).targets(0, 2) == ()
    assert make(SamplingParams(prompt_logprobs=True), prompt=(1,)).targets(0, 1) == ()


def test_a_request_output_is_finished_with_its_reason() -> None:
    fields: dict[str, Any] = dict.fromkeys(RequestOutput.__dataclass_fields__)
    assert not RequestOutput(**fields).finished
    assert RequestOutput(**{**fields, "finish_reason": "stop"}).finished


def test_mix64_is_fixed_for_ever() -> None:
    # Computed in C from the published algorithm: a change would change every seeded text.
    assert mix64(0, 0) == -6411193824288604561
    assert mix64(0, 1) == 3069472533636442495
    assert mix64(1, 0) == 6791897765849424158
    assert mix64(-1, 2**62) == -2737074043337227957


def test_mix64_tells_neighbours_apart() -> None:
    values = [mix64(seed, number) for seed in range(-50, 50) for number in range(100)]
    assert len(set(values)) == len(values)
    assert all(INT64_MIN <= value <= INT64_MAX for value in values)
    flipped = [((a ^ b) & (2**64 - 1)).bit_count() for a, b in pairwise(values)]
    assert 31.5 < sum(flipped) / len(flipped) < 32.5
