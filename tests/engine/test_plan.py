"""Plans and results survive the trip between ranks bit for bit, and garbage does not get in."""

from __future__ import annotations

import math
import struct
import zlib
from array import array
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama.engine.plan import BatchPlan, DrawParams, PlannedSequence, SequenceResult, StepResult
from llama.engine.sequence import TokenLogprob
from llama.errors import RankMismatchError

INT64 = st.integers(-(2**63), 2**63 - 1)
IDS = st.lists(st.integers(0, 2**31), max_size=6).map(tuple)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
RUN = st.builds(lambda a, n: range(a, a + n), st.integers(0, 2**40), st.integers(0, 5))
TABLES = st.lists(RUN, max_size=4).map(lambda runs: tuple(b for run in runs for b in run))
DRAWS = st.builds(DrawParams, FLOATS, FLOATS, INT64, INT64, INT64, st.integers(-1, 20))
PLANNED = st.builds(
    PlannedSequence, INT64, IDS, INT64, INT64, TABLES, st.booleans(), st.none() | DRAWS, IDS
)
PLANS = st.builds(BatchPlan, st.lists(PLANNED, max_size=4).map(tuple), st.booleans())
TOPS = st.lists(st.tuples(INT64, FLOATS), max_size=4).map(tuple)
RESULTS = st.builds(
    SequenceResult,
    INT64,
    st.none() | st.builds(TokenLogprob, INT64, FLOATS, TOPS),
    st.lists(FLOATS, max_size=4).map(tuple),
)
STEPS = st.builds(StepResult, st.lists(RESULTS, max_size=4).map(tuple))


def bits(value: object) -> object:
    """`value` with every float as its bytes, so that == tells NaNs and zeros apart."""
    if isinstance(value, float):
        return struct.pack("d", value)
    if isinstance(value, tuple):
        return tuple(bits(item) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        return type(value), {name: bits(item) for name, item in vars(value).items()}
    return value


@settings(deadline=None)
@given(PLANS)
def test_a_plan_comes_back_exactly(plan: BatchPlan) -> None:
    message = plan.encode()
    assert all(type(number) is int and -(2**63) <= number < 2**63 for number in message)
    assert bits(BatchPlan.decode(message)) == bits(plan)


@settings(deadline=None)
@given(STEPS)
def test_a_result_comes_back_exactly(result: StepResult) -> None:
    message = result.encode()
    assert all(type(number) is int and -(2**63) <= number < 2**63 for number in message)
    assert bits(StepResult.decode(message)) == bits(result)


def test_stop_is_a_plan() -> None:
    assert BatchPlan.decode(BatchPlan.STOP.encode()) == BatchPlan.STOP
    assert BatchPlan.STOP.stop
    assert not BatchPlan.STOP.sequences


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, -0.0, 5e-324, 1.7e308])
def test_special_floats(value: float) -> None:
    result = StepResult((SequenceResult(3, TokenLogprob(3, value, ((4, value),)), (value,)),))
    assert bits(StepResult.decode(result.encode())) == bits(result)


def a_decode_batch(n_sequences: int, *, n_blocks: int) -> BatchPlan:
    draw = DrawParams(temperature=0.7, top_p=0.9, top_k=0, seed=-(2**60), step=99)
    return BatchPlan(
        tuple(
            PlannedSequence(i, (i,), 1000, 9, tuple(range(i * 500, i * 500 + n_blocks)), True, draw)
            for i in range(n_sequences)
        )
    )


def test_a_usual_decode_step_fits_one_frame() -> None:
    assert len(a_decode_batch(32, n_blocks=128).encode()) <= 1024
    assert BatchPlan.decode(a_decode_batch(2, n_blocks=128).encode()).num_tokens == 2


@settings(deadline=None)
@given(PLANS, st.data())
def test_a_damaged_plan_is_refused(plan: BatchPlan, data: st.DataObject) -> None:
    message = plan.encode()
    at = data.draw(st.integers(0, len(message) - 1))
    number = data.draw(INT64)
    assume(number != message[at])
    damaged = [*message[:at], number, *message[at + 1 :]]
    for garbage in (damaged, message[:at], [*message, 0]):
        with pytest.raises(RankMismatchError, match="batch plan"):
            BatchPlan.decode(garbage)


@settings(deadline=None)
@given(st.lists(INT64, max_size=30))
def test_noise_is_refused(noise: list[int]) -> None:
    with pytest.raises(RankMismatchError):
        BatchPlan.decode(noise)
    with pytest.raises(RankMismatchError):
        StepResult.decode(noise)


def test_a_plan_is_no_result() -> None:
    with pytest.raises(RankMismatchError, match="step result was expected"):
        StepResult.decode(BatchPlan.STOP.encode())
    with pytest.raises(RankMismatchError, match="same version"):
        BatchPlan.decode(StepResult(()).encode())


def sealed(message: list[int], fields: list[int]) -> list[int]:
    """`fields` with the header of `message`, made right: what only a faulty sender could send."""
    return [message[0], len(fields), zlib.crc32(array("q", fields).tobytes()), *fields]


PLAN_FIELDS = {
    "a second flag value": [2, 0],
    "negative count of sequences": [0, -1],
    "more sequences than integers": [0, 2**50],
    "flags": [0, 1, 5, 4, 0, 0, 0, 0, 0],
    "a huge block table": [0, 1, 5, 0, 0, 0, 0, 1, 0, 2**50, 0],
    "a negative run": [0, 1, 5, 0, 0, 0, 0, 1, 0, -1, 0],
    "cut off": [0, 1, 5, 0, 0],
    "too long": [0, 1, 5, 0, 0, 0, 0, 0, 0, 9],
}


@pytest.mark.parametrize("what", PLAN_FIELDS)
def test_nonsense_under_a_right_checksum_is_refused(what: str) -> None:
    right = [0, 1, 5, 0, 0, 0, 0, 0, 0]
    assert BatchPlan.decode(sealed(BatchPlan.STOP.encode(), right)).sequences[0].seq_id == 5
    with pytest.raises(RankMismatchError, match="batch plan"):
        BatchPlan.decode(sealed(BatchPlan.STOP.encode(), PLAN_FIELDS[what]))


def test_the_uniform_depends_on_seed_and_step_only() -> None:
    draw = DrawParams(temperature=1.0, top_p=1.0, top_k=0, seed=7, step=3)
    assert draw.uniform == replace(draw, temperature=0.2, top_k=5, n_logprobs=3).uniform
    values = {
        replace(draw, seed=seed, step=step).uniform for seed in range(30) for step in range(30)
    }
    assert len(values) == 900
    assert all(0 <= value < 1 for value in values)


def test_uniforms_are_even() -> None:
    draw = DrawParams(temperature=1.0, top_p=1.0, top_k=0, seed=0, step=0)
    for seed in (0, 1, -5):
        values = [replace(draw, seed=seed, step=step).uniform for step in range(4000)]
        counts = [sum(cell == int(value * 20) for value in values) for cell in range(20)]
        # Chi-square with 19 degrees of freedom exceeds 43.8 once in a thousand.
        assert sum((count - 200) ** 2 / 200 for count in counts) < 43.8
        pairs = list(pairwise(values))
        covariance = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs)
        assert abs(covariance) < 4 / 12 / math.sqrt(len(pairs))
