"""Messages arrive whole and in order, and a sender never waits for a receiver that is busy."""

from __future__ import annotations

import pytest
import torch

from llama.parallel.context import ParallelContext
from llama.parallel.mailbox import Mailbox
from tests.helpers.ranks import run_layout

FRAME = 8
BIG = 2**63 - 1


def messages(salt: int) -> list[list[int]]:
    """Around the frame's edge (its first integer is the length), and far beyond it."""
    lengths = [0, 1, FRAME - 2, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME, 1000]
    return [[salt, *range(n)][:n] for n in lengths] + [[-BIG - 1, BIG, salt]]


def all_to_all(context: ParallelContext) -> list[list[list[int]]]:
    mailbox = Mailbox(context.messages, frame_size=FRAME)
    me, others = context.rank, [r for r in range(context.layout.world_size) if r != context.rank]
    for other in others:
        for message in messages(100 * me + other):
            mailbox.post(message, other)
    found = [[mailbox.receive(other) for _ in messages(0)] for other in reversed(others)]
    mailbox.flush()
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_messages_of_any_length_arrive_in_order(size: int) -> None:
    for rank, found in enumerate(run_layout(all_to_all, tp=size)):
        others = [other for other in range(size) if other != rank]
        assert found == [messages(100 * other + rank) for other in reversed(others)]


def post_to_a_busy_rank(context: ParallelContext) -> list[list[int]]:
    """Rank 0 posts, and only then takes part in the sum that rank 1 waits in before it receives."""
    mailbox = Mailbox(context.messages, frame_size=FRAME, window=20)
    if context.rank == 0:
        for i in range(20):
            mailbox.post([i] * (3 * i), 1)
        context.tp.all_reduce(torch.zeros(1))
        mailbox.flush()
        return []
    context.tp.all_reduce(torch.zeros(1))
    return [mailbox.receive(0) for _ in range(20)]


def test_posting_does_not_wait_for_the_receiver() -> None:
    """If it did, the two ranks would wait for each other until the deadline."""
    _, received = run_layout(post_to_a_busy_rank, tp=2, deadline_s=30)
    assert received == [[i] * (3 * i) for i in range(20)]


def reuse_the_list(context: ParallelContext) -> list[list[int]]:
    mailbox = Mailbox(context.messages, frame_size=FRAME)
    if context.rank == 0:
        message = [1, 2, 3]
        mailbox.post(message, 1)
        message[:] = [7, 7, 7]
        mailbox.post(message, 1)
    context.tp.barrier()
    found = [mailbox.receive(0) for _ in range(2)] if context.rank else []
    mailbox.flush()
    return found


def test_a_posted_message_is_the_senders_to_change() -> None:
    assert run_layout(reuse_the_list, tp=2)[1] == [[1, 2, 3], [7, 7, 7]]


def mix_with_control(context: ParallelContext) -> tuple[list[int], int]:
    """Messages under way and collectives of the same ranks keep out of each other's way."""
    found: list[int] = []
    if context.is_leader:
        context.mailbox.post([1, 2, 3], 1)
    total = int(context.replica.all_reduce(torch.tensor([context.rank + 1])))
    context.agree({"seed": 1})
    if context.rank == 1:
        found = context.mailbox.receive(0)
    context.mailbox.flush()
    return found, total


def test_messages_and_collectives_do_not_mix() -> None:
    assert run_layout(mix_with_control, pp=2) == [([], 3), ([1, 2, 3], 3)]


def leave_unflushed(context: ParallelContext) -> str:
    if context.rank == 0:
        context.mailbox.post([1, 2, 3], 1)
    context.world.barrier()
    context.close()
    return "left"


def test_a_message_that_nobody_took_does_not_hold_up_the_end() -> None:
    assert run_layout(leave_unflushed, tp=2, deadline_s=30) == ["left"] * 2
