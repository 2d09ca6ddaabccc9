"""Who goes first, who shares a plan, who is preempted. Refusals: test_scheduler_refusals.py."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llama.errors import UsageError
from tests.helpers.replica import Replica


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_preempted_sequences_are_computed_again_not_sampled_again(max_in_flight: int) -> None:
    replica = Replica(num_blocks=16, max_in_flight=max_in_flight)
    for _ in range(6):
        replica.add(8, max_tokens=50, ignore_eos=True, prompt_logprobs=True)
    replica.finish_all()
    assert replica.preempted > 0
    replica.check_outputs()
    steps = [
        (planned.seq_id, planned.draw.step)
        for plan in replica.plans
        for planned in plan.sequences
        if planned.draw is not None
    ]
    assert len(steps) == len(set(steps)) == 6 * 50


def test_the_last_to_come_is_preempted_and_goes_first_afterwards() -> None:
    replica = Replica(num_blocks=8, max_batch_size=3)
    first, second, third, late = (replica.add(7, max_tokens=20, ignore_eos=True) for _ in range(4))
    while not replica.preempted:
        replica.schedule()
        replica.update()
    scheduler = replica.scheduler
    assert (scheduler.running, list(scheduler.waiting)) == ([first, second], [third, late])
    assert (third.num_computed, third.block_table) == (0, ())
    kept = third.output_token_ids
    assert kept
    replica.finish_all()
    replica.check_outputs()
    assert third.output_token_ids[: len(kept)] == kept


def test_nobody_is_admitted_into_the_last_block_of_another() -> None:
    replica = Replica(num_blocks=5)
    replica.add(8, max_tokens=5, ignore_eos=True)  # two blocks, and a third one soon
    replica.add(9, max_tokens=3, ignore_eos=True)  # three blocks
    replica.finish_all()
    assert replica.preempted == 0
    # One that cannot grow holds nobody up.
    replica = Replica(num_blocks=5)
    replica.add(8, max_tokens=1)
    replica.add(9, max_tokens=1)
    plan = replica.schedule()
    assert plan is not None
    assert len(plan.sequences) == 2


def test_the_budget_holds_for_decodes_as_well() -> None:
    replica = Replica(max_in_flight=2, max_num_batched_tokens=2)
    for _ in range(6):
        replica.add(1, max_tokens=5, ignore_eos=True)
    while replica.schedule() is not None:
        pass
    assert [plan.num_tokens for plan, _ in replica.out] == [2, 2]
    replica.update()
    replica.update()
    plan = replica.schedule()
    assert plan is not None
    assert plan.num_tokens == 2


def test_decodes_go_on_beside_a_long_prompt() -> None:
    replica = Replica(max_num_batched_tokens=8)
    short = [replica.add(2, max_tokens=40, ignore_eos=True) for _ in range(3)]
    replica.schedule()
    replica.update()
    long = replica.add(50, max_tokens=1)
    while not long.is_finished:
        before = [s.num_output_tokens for s in short]
        plan = replica.schedule()
        assert plan is not None
        assert [len(planned.token_ids) for planned in plan.sequences] == [1, 1, 1, 5]
        replica.update()
        assert [s.num_output_tokens for s in short] == [n + 1 for n in before]


def test_first_come_first_served() -> None:
    replica = Replica(max_batch_size=2, max_num_batched_tokens=16)
    for n_prompt in (30, 3, 3, 3):
        replica.add(n_prompt, max_tokens=2)
    replica.finish_all()
    firsts = [planned.seq_id for plan in replica.plans for planned in plan.sequences]
    assert sorted(set(firsts), key=firsts.index) == [0, 1, 2, 3]


def sizes_of_plans(replica: Replica, n_plans: int) -> list[list[int]]:
    """Sequences of each plan in flight, after each of `n_plans` steps."""
    found = []
    for _ in range(n_plans):
        while replica.schedule() is not None:
            pass
        found.append([len(plan.sequences) for plan, _ in replica.out])
        replica.update()
    return found


@pytest.mark.parametrize(
    ("n_requests", "max_in_flight", "expected"),
    [(32, 2, [16, 16]), (4, 3, [2, 1, 1]), (7, 4, [2, 2, 2, 1]), (1, 2, [1]), (5, 1, [5])],
)
def test_plans_in_flight_share_the_sequences(
    n_requests: int, max_in_flight: int, expected: list[int]
) -> None:
    replica = Replica(max_in_flight=max_in_flight, num_blocks=512, max_batch_size=32)
    for _ in range(n_requests):
        replica.add(5, max_tokens=30, ignore_eos=True)
    for sizes in sizes_of_plans(replica, 25):
        assert sorted(sizes, reverse=True) == expected


def test_shares_become_even_again_when_one_plan_shrinks() -> None:
    replica = Replica(max_in_flight=2, num_blocks=512, max_batch_size=32)
    for index in range(32):
        replica.add(5, max_tokens=4 if index < 12 else 40, ignore_eos=True)
    sizes = sizes_of_plans(replica, 24)
    assert sizes[0] == [16, 16]
    assert sizes[-1] == [10, 10]


def test_nobody_is_left_out_of_the_ring() -> None:
    replica = Replica(max_in_flight=3, num_blocks=512, max_batch_size=32)
    for index in range(20):
        replica.add(1 + index % 7, max_tokens=20 + index, ignore_eos=True)
    replica.finish_all()
    for sequence in replica.sequences:
        turns = [
            at
            for at, plan in enumerate(replica.plans)
            if any(planned.seq_id == sequence.seq_id for planned in plan.sequences)
        ]
        assert max(b - a for a, b in pairwise(turns)) <= 2 * 3


def test_chunks_of_one_prompt_follow_each_other_in_flight() -> None:
    replica = Replica(max_seq_len=1024, max_in_flight=2, num_blocks=512)
    sequence = replica.add(600, max_tokens=4, prompt_logprobs=True)
    while replica.schedule() is not None:
        pass
    spans = [(p.start, len(p.token_ids), p.sample) for q, _ in replica.out for p in q.sequences]
    assert spans == [(0, 128, False), (128, 128, False)]
    assert sequence.plans_in_flight == 2
    replica.finish_all()
    replica.check_outputs()


def test_short_prompts_are_not_cut_for_the_sake_of_sharing() -> None:
    replica = Replica(max_in_flight=2)
    replica.add(40)
    plan = replica.schedule()
    assert plan is not None
    assert len(plan.sequences[0].token_ids) == 40


def test_one_process_takes_as_much_as_the_budget_allows() -> None:
    replica = Replica(max_seq_len=1024, num_blocks=512)
    replica.add(600)
    plan = replica.schedule()
    assert plan is not None
    assert plan.num_tokens == 600


@pytest.mark.parametrize("prompt_logprobs", [False, True])
def test_a_prompt_of_max_seq_len_is_scored_but_not_continued(prompt_logprobs: bool) -> None:
    replica = Replica(max_num_batched_tokens=25)
    sequence = replica.add(64, max_tokens=None, prompt_logprobs=prompt_logprobs)
    assert sequence.is_finished == (not prompt_logprobs)
    replica.finish_all()
    replica.check_outputs()
    assert (sequence.finish_reason, sequence.output_token_ids) == ("length", [])
    assert len(replica.plans) == (3 if prompt_logprobs else 0)


def test_a_prompt_may_be_scored_and_not_continued() -> None:
    """With the blocks of the prompt alone; one with nothing to score is done at once."""
    replica = Replica(max_num_batched_tokens=9, num_blocks=5, max_in_flight=2)
    scored = [replica.add(n, max_tokens=0, prompt_logprobs=True) for n in (20, 8, 2)]
    done = [replica.add(1, max_tokens=0, prompt_logprobs=True), replica.add(20, max_tokens=0)]
    assert [sequence.is_finished for sequence in [*scored, *done]] == [False] * 3 + [True] * 2
    with pytest.raises(UsageError, match="needs 6 KV blocks"):
        replica.add(21, max_tokens=0, prompt_logprobs=True)
    replica.finish_all()
    replica.check_outputs()
    for sequence in [*scored, *done]:
        assert (sequence.finish_reason, sequence.output_token_ids) == ("length", [])
    assert not any(planned.sample for plan in replica.plans for planned in plan.sequences)


def test_output_may_fill_the_sequence_and_all_blocks_exactly() -> None:
    replica = Replica(max_seq_len=17, num_blocks=4)
    sequence = replica.add(16, max_tokens=None, ignore_eos=True)
    replica.finish_all()
    assert len(sequence.output_token_ids) == 1
    with pytest.raises(UsageError, match="needs 5 KV blocks"):
        Replica(max_seq_len=18, num_blocks=4).add(16, max_tokens=None)


def test_an_abort_frees_the_blocks_when_the_plan_is_back() -> None:
    replica = Replica(max_in_flight=2, num_blocks=16)
    flying = replica.add(8, max_tokens=9)
    assert replica.schedule() is not None
    replica.scheduler.finish(flying.seq_id, "abort")
    assert not replica.scheduler.has_unfinished
    assert replica.scheduler.num_free_blocks == 14
    assert replica.scheduler.schedule() is None
    assert replica.update() == []
    assert replica.scheduler.num_free_blocks == 16
    assert flying.output_token_ids == []


def test_an_abort_while_waiting_and_a_late_abort() -> None:
    replica = Replica()
    waiting, done = replica.add(3), replica.add(3, max_tokens=1, ignore_eos=True)
    replica.scheduler.finish(waiting.seq_id, "abort")
    replica.finish_all()
    replica.scheduler.finish(done.seq_id, "abort")
    assert (waiting.finish_reason, done.finish_reason) == ("abort", "length")


def test_a_stop_string_ends_a_running_sequence() -> None:
    replica = Replica()
    sequence = replica.add(3, max_tokens=9, ignore_eos=True)
    replica.schedule()
    assert replica.update() == [sequence]
    replica.scheduler.finish(sequence.seq_id, "stop")
    assert (sequence.finish_reason, len(sequence.output_token_ids)) == ("stop", 1)
    assert replica.scheduler.num_free_blocks == 64


def test_update_returns_those_that_gained_a_token() -> None:
    replica = Replica(max_num_batched_tokens=10)
    short, long = replica.add(4, max_tokens=5, ignore_eos=True), replica.add(20, ignore_eos=True)
    replica.schedule()
    assert replica.update() == [short]  # only a chunk of the other
    assert long.num_computed == 6


def test_reset_forgets_everything() -> None:
    replica = Replica(max_in_flight=2)
    replica.add(8)
    replica.schedule()
    replica.scheduler.reset()
    scheduler = replica.scheduler
    assert (scheduler.has_unfinished, scheduler.in_flight, scheduler.num_free_blocks) == (
        False,
        0,
        64,
    )
    replica.out.clear()
    replica.sequences.clear()
    replica.add(8)
    replica.finish_all()
    replica.check_outputs()
