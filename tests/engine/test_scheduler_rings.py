"""Sequences under a sliding window: each holds a ring of blocks, whatever its length."""

from __future__ import annotations

import pytest

from tests.helpers.replica import Replica


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_ring_serves_a_sequence_of_any_length(max_in_flight: int) -> None:
    """Rings of two blocks in a cache of three: prompts of ten windows, one after the other."""
    replica = Replica(
        max_seq_len=200,
        num_blocks=3,
        window=8,
        max_in_flight=max_in_flight,
        max_num_batched_tokens=5,
    )
    for _ in range(3):
        replica.add(80, max_tokens=100, ignore_eos=True, prompt_logprobs=True)
    replica.finish_all()
    replica.check_outputs()
    assert replica.preempted == 0
    assert {len(s.block_table) for plan in replica.plans for s in plan.sequences} == {2}


def test_who_holds_a_full_ring_needs_no_more() -> None:
    """Two rings fill the cache, which two ordinary sequences of this length could not share."""
    for window, expected in ((8, 0), (None, 1)):
        replica = Replica(num_blocks=4 if window else 20, window=window)
        for _ in range(2):
            replica.add(9, max_tokens=50, ignore_eos=True)
        replica.finish_all()
        replica.check_outputs()
        assert replica.preempted == expected
        firsts = [planned.seq_id for planned in replica.plans[0].sequences]
        assert firsts == [0, 1]


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_a_preempted_ring_is_filled_again_in_chunks(max_in_flight: int) -> None:
    """The first one grows into the third block of its ring, which only the other can give."""
    replica = Replica(num_blocks=5, window=9, max_in_flight=max_in_flight, max_num_batched_tokens=7)
    replica.add(2, max_tokens=40, ignore_eos=True)
    other = replica.add(25, max_tokens=30, ignore_eos=True, prompt_logprobs=True)
    replica.finish_all()
    replica.check_outputs()
    assert replica.preempted == 1
    parts = [s for plan in replica.plans for s in plan.sequences if s.seq_id == other.seq_id]
    began = [at for at, part in enumerate(parts) if part.start == 0]
    assert len(began) == 2 and sum(parts[at].sample for at in range(*began)) > 0
