"""Silence is counted in time that the reader was there for, and told once an incident."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llama.parallel.liveness.beat import (
    BEAT_S,
    Beat,
    Silence,
    Stopwatch,
    describe_incident,
    describe_waits,
    standstill,
)

BEAT = Beat(
    rank=1, host="hostB", pid=77, n=5, phase="STEP", doing="generate", step=41, layer=3, file=None,
    waiting_for=None, n_done=9,
)  # fmt: skip


def test_a_beat_survives_the_store() -> None:
    assert Beat.from_json(BEAT.to_json()) == BEAT
    assert BEAT.where == "STEP (generate, step 41, layer 3)"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", "\ud800", "[" * 100_000),
        *(json.dumps(vars(BEAT) | change) for change in ({"n": "5"}, {"host": 5}, {"phase": None})),
    ],
)
def test_anything_else_is_no_beat(text: str) -> None:
    assert Beat.from_json(text) is None


def listen(silence: Silence, counters: dict[int, int], *, times: int, at_s: float) -> float:
    for _ in range(times):
        at_s += BEAT_S
        silence.read(at_s, counters)
    return at_s


def test_a_rank_whose_counter_stands_still_is_silent() -> None:
    silence = Silence()
    at_s = listen(silence, {1: 1, 2: 1}, times=1, at_s=100.0)
    for n in range(2, 12):
        at_s = listen(silence, {1: n, 2: 1}, times=1, at_s=at_s)
    assert silence.silent_for(5.0) == {2: 5.0}
    assert silence.silent_for(5.1) == {}


def test_a_reader_that_was_away_accuses_nobody() -> None:
    """Stopped, or blocked by the store: the others may have beaten all the time."""
    silence = Silence()
    silence.read(0.0, {1: 1})
    silence.read(600.0, {1: 1})
    assert silence.silent_for(2 * BEAT_S) == {1: 2 * BEAT_S}
    assert silence.silent_for(1.5) == {}
    silence.read(600.5, {1: 1201})
    assert silence.silent_for(BEAT_S) == {}


def test_an_incident_is_told_once_when_all_are_back() -> None:
    silence = Silence()
    at_s = listen(silence, {1: 1, 2: 1, 3: 1}, times=5, at_s=0.0)
    assert silence.ended_incident() == {}
    at_s = listen(silence, {1: 2, 2: 1, 3: 1}, times=1, at_s=at_s)
    assert silence.ended_incident() == {}, "2 and 3 are still silent"
    at_s = listen(silence, {1: 3, 2: 2, 3: 2}, times=1, at_s=at_s)
    assert silence.ended_incident() == {1: 2.0, 2: 2.5, 3: 2.5}
    at_s = listen(silence, {1: 4, 2: 3, 3: 3}, times=1, at_s=at_s)
    assert silence.ended_incident() == {}


def test_a_short_silence_is_nothing() -> None:
    silence = Silence()
    at_s = listen(silence, {1: 1}, times=3, at_s=0.0)
    listen(silence, {1: 2}, times=1, at_s=at_s)
    assert silence.ended_incident() == {}


def test_nothing_is_expected_of_a_rank_that_left() -> None:
    silence = Silence()
    at_s = listen(silence, {1: 1, 2: 1}, times=5, at_s=0.0)
    silence.forget(1)
    listen(silence, {2: 2}, times=1, at_s=at_s)
    assert silence.silent_for(0.1) == {}
    assert silence.ended_incident() == {2: 2.0}


def test_the_words_for_an_incident() -> None:
    hosts = {1: "hostA", 2: "hostB", 3: "hostB"}
    assert describe_incident({2: 2.04}, hosts) == "rank 2 (hostB) was silent for 2.0 s; it is back"
    assert (
        describe_incident({3: 2.6, 2: 1.9}, hosts)
        == "ranks 2, 3 (hostB) were silent for 2.6 s; they are back"
    )


def test_a_stopwatch_starts_anew_with_every_change() -> None:
    watch = Stopwatch()
    assert [watch.observe(value, 1.0) for value in "aaabba"] == [0, 1, 2, 0, 1, 0]


def test_all_wait_for_one_another_only_if_all_wait_in_a_step() -> None:
    waiting = replace(BEAT, waiting_for="tp all_reduce with rank 0")
    assert standstill([waiting, replace(waiting, rank=0, n_done=4)]) == (9, 4)
    assert standstill([waiting, BEAT]) is None
    assert standstill([waiting, replace(waiting, phase="WAIT")]) is None
    assert describe_waits([waiting, replace(BEAT, rank=2)]) == (
        "rank 1 (hostB) waits for tp all_reduce with rank 0; "
        "rank 2 (hostB) is in STEP (generate, step 41, layer 3)"
    )
