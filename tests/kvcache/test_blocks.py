"""Blocks are never lost, never shared, and as contiguous as the traffic allows."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from llama.errors import OutOfMemoryError, UsageError
from llama.kvcache.blocks import BlockManager


def is_contiguous(table: tuple[int, ...]) -> bool:
    return table == tuple(range(table[0], table[0] + len(table)))


def make_blocks(num_blocks: int, block_size: int, ring_blocks: int | None = None) -> BlockManager:
    """Without `ring_blocks` no sequence ever goes round."""
    return BlockManager(num_blocks, block_size, ring_blocks=ring_blocks or num_blocks + 1)


class RandomTraffic(RuleBasedStateMachine):
    """Sequences come, grow and go; the model is a plain dict of how many tokens each was given."""

    sequences: Bundle[int] = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[int, int] = {}
        self.next_id = 0

    @initialize(ring_blocks=st.integers(1, 13))
    def build(self, ring_blocks: int) -> None:
        self.ring_blocks = ring_blocks
        self.blocks = make_blocks(12, 3, ring_blocks)

    def table_size(self, num_tokens: int) -> int:
        return min(-(-num_tokens // 3), self.ring_blocks)

    @rule(target=sequences, num_tokens=st.integers(1, 20), expected=st.integers(0, 60))
    def start(self, num_tokens: int, expected: int) -> int:
        seq_id, self.next_id = self.next_id, self.next_id + 1
        self.tokens[seq_id] = 0
        self.give(seq_id, num_tokens, expected)
        return seq_id

    @rule(seq_id=sequences, more=st.integers(0, 8), expected=st.integers(0, 60))
    def grow(self, seq_id: int, more: int, expected: int) -> None:
        self.give(seq_id, self.tokens[seq_id] + more, expected)

    @rule(seq_id=consumes(sequences))
    def end(self, seq_id: int) -> None:
        if self.tokens.pop(seq_id):
            self.blocks.free(seq_id)
        else:
            with pytest.raises(UsageError, match="holds no KV blocks"):
                self.blocks.free(seq_id)

    def give(self, seq_id: int, num_tokens: int, expected: int) -> None:
        before = self.blocks.block_table(seq_id)
        free = self.blocks.num_free
        fits = self.table_size(num_tokens) - len(before) <= free
        assert self.blocks.can_allocate(seq_id, num_tokens) == fits
        if fits:
            self.blocks.allocate(seq_id, num_tokens, expected_tokens=expected)
            self.tokens[seq_id] = max(num_tokens, self.tokens[seq_id])
            assert self.blocks.block_table(seq_id)[: len(before)] == before
        else:
            with pytest.raises(OutOfMemoryError):
                self.blocks.allocate(seq_id, num_tokens, expected_tokens=expected)
            assert (self.blocks.block_table(seq_id), self.blocks.num_free) == (before, free)

    @invariant()
    def every_block_is_free_or_held_once(self) -> None:
        tables = [self.blocks.block_table(seq_id) for seq_id in self.tokens]
        held = [block for table in tables for block in table]
        assert len(held) == len(set(held)) == 12 - self.blocks.num_free
        assert set(held) <= set(range(12))
        for table, num_tokens in zip(tables, self.tokens.values(), strict=True):
            assert len(table) == self.table_size(num_tokens)

    def teardown(self) -> None:
        for seq_id in [seq_id for seq_id, num_tokens in self.tokens.items() if num_tokens]:
            self.blocks.free(seq_id)
        assert self.blocks.num_free == 12
        self.blocks.allocate(-1, 36)  # as a run, since no claim outlives its owner
        assert self.blocks.block_table(-1) == tuple(range(min(12, self.ring_blocks)))


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_sequences_that_grow_in_turn_stay_contiguous() -> None:
    blocks = make_blocks(num_blocks=32, block_size=4)
    for num_tokens in range(1, 33):
        for seq_id in range(4):
            blocks.allocate(seq_id, num_tokens, expected_tokens=32)
    for seq_id in range(4):
        assert is_contiguous(blocks.block_table(seq_id))
    blocks.free(2)
    blocks.allocate(9, 5, expected_tokens=32)
    blocks.allocate(9, 32, expected_tokens=32)
    assert is_contiguous(blocks.block_table(9))


def test_a_sequence_goes_on_where_it_is_when_blocks_before_it_come_free() -> None:
    blocks = make_blocks(num_blocks=8, block_size=1)
    blocks.allocate(0, 1, expected_tokens=4)
    blocks.allocate(1, 1, expected_tokens=4)
    blocks.free(0)
    blocks.allocate(1, 4, expected_tokens=4)
    assert blocks.block_table(1) == (4, 5, 6, 7)


def test_a_claim_yields_when_nothing_else_is_left() -> None:
    blocks = make_blocks(num_blocks=4, block_size=1)
    blocks.allocate(0, 1, expected_tokens=4)
    blocks.allocate(1, 3)
    assert sorted(blocks.block_table(0) + blocks.block_table(1)) == [0, 1, 2, 3]
    blocks.free(1)
    blocks.allocate(0, 4)
    assert blocks.num_free == 0


def test_an_expectation_beyond_the_cache_is_only_a_hint() -> None:
    blocks = make_blocks(num_blocks=3, block_size=2)
    blocks.allocate(0, 2, expected_tokens=1000)
    blocks.allocate(0, 6, expected_tokens=1000)
    assert blocks.block_table(0) == (0, 1, 2)


def test_too_many_tokens_name_both_numbers() -> None:
    blocks = make_blocks(num_blocks=3, block_size=2)
    blocks.allocate(0, 2)
    with pytest.raises(OutOfMemoryError, match="needs 3 more KV blocks of 2 tokens, 2 of 3 are"):
        blocks.allocate(0, 8)


def test_a_ring_is_full_for_good() -> None:
    blocks = make_blocks(num_blocks=8, block_size=2, ring_blocks=3)
    blocks.allocate(0, 3, expected_tokens=1000)
    blocks.allocate(1, 2)
    assert blocks.block_table(1) == (3,)  # only the ring was claimed
    blocks.allocate(0, 5)
    for num_tokens in (6, 7, 1000, 10**12):
        assert blocks.can_allocate(0, num_tokens)
        blocks.allocate(0, num_tokens)
        assert (blocks.block_table(0), blocks.num_free) == ((0, 1, 2), 4)
    blocks.free(0)
    assert blocks.num_free == 7


def test_reset_takes_every_block_back() -> None:
    blocks = make_blocks(num_blocks=4, block_size=1)
    blocks.allocate(0, 1, expected_tokens=3)
    blocks.reset()
    assert (blocks.block_table(0), blocks.num_free) == ((), 4)
    blocks.allocate(1, 4)
    assert blocks.block_table(1) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("num_blocks", "block_size", "ring_blocks"), [(0, 1, 1), (1, 0, 1), (-1, 4, 1), (1, 1, 0)]
)
def test_sizes_below_one_are_refused(num_blocks: int, block_size: int, ring_blocks: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        BlockManager(num_blocks, block_size, ring_blocks=ring_blocks)
