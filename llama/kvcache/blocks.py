"""Which KV blocks belong to which sequence. Pure bookkeeping: no torch, no tensors, no scheduling.

A block holds the keys and values of `block_size` consecutive tokens of one sequence, on every
layer. Any free block would do, but attention reads a run of ascending blocks as one view instead of
a gather, so the first allocation of a sequence also *claims* the blocks that it is expected to grow
into. A claim is soft: others avoid claimed blocks while there are unclaimed ones, and take them
when there are not.

A sequence's table is a ring of at most `ring_blocks`: where no layer looks further back than that,
block number n of a sequence is written over block n - ring_blocks.
"""

from __future__ import annotations

from llama.errors import OutOfMemoryError, UsageError

_FREE, _CLAIMED, _USED = 0, 1, 2


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens and takes them back by sequence."""

    def __init__(self, num_blocks: int, block_size: int, *, ring_blocks: int) -> None:
        if min(num_blocks, block_size, ring_blocks) < 1:
            raise UsageError(
                "num_blocks, block_size and ring_blocks must be at least 1, "
                f"got {num_blocks}, {block_size} and {ring_blocks}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.ring_blocks = ring_blocks
        self.reset()

    def reset(self) -> None:
        """Take every block back."""
        self.num_free = self.num_blocks
        self._state = bytearray(self.num_blocks)
        self._tables: dict[int, list[int]] = {}
        self._claims: dict[int, range] = {}

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks of a sequence of `num_tokens` tokens."""
        return min(-(-num_tokens // self.block_size), self.ring_blocks)

    def block_table(self, seq_id: int) -> tuple[int, ...]:
        """The sequence's blocks, number n at n % ring_blocks; empty when it holds none."""
        return tuple(self._tables.get(seq_id, ()))

    def can_allocate(self, seq_id: int, num_tokens: int) -> bool:
        """Whether `allocate` with the same arguments would succeed."""
        return self._missing(seq_id, num_tokens) <= self.num_free

    def allocate(self, seq_id: int, num_tokens: int, *, expected_tokens: int = 0) -> None:
        """Grow the sequence's table until it is that of `num_tokens` tokens; it never shrinks.

        `expected_tokens` is how many the sequence may reach, a hint for where to place it.
        Raises OutOfMemoryError, with nothing changed, when too few blocks are free.
        """
        missing = self._missing(seq_id, num_tokens)
        if missing > self.num_free:
            raise OutOfMemoryError(
                f"sequence {seq_id} needs {missing} more KV blocks of {self.block_size} tokens, "
                f"{self.num_free} of {self.num_blocks} are free; preempt another sequence, "
                f"or raise num_blocks"
            )
        if not missing:
            return
        table = self._tables.setdefault(seq_id, [])
        expected = max(self.blocks_for(expected_tokens) - len(table), missing)
        for _ in range(missing):
            block = table[-1] + 1 if table else self.num_blocks
            if block == self.num_blocks or self._state[block] == _USED:
                block = self._claim(seq_id, expected)
            table.append(block)
            self._state[block] = _USED
            self.num_free -= 1
            expected -= 1

    def free(self, seq_id: int) -> None:
        """Take back all blocks of the sequence. Raises UsageError when it holds none."""
        table = self._tables.pop(seq_id, None)
        if table is None:
            raise UsageError(f"sequence {seq_id} holds no KV blocks")
        self._drop_claim(seq_id)
        for block in table:
            self._state[block] = _FREE
        self.num_free += len(table)

    def _missing(self, seq_id: int, num_tokens: int) -> int:
        return max(self.blocks_for(num_tokens) - len(self._tables.get(seq_id, ())), 0)

    def _claim(self, seq_id: int, expected: int) -> int:
        """Claim the first run of `expected` unclaimed blocks, else a shorter one, else any one.

        Returns its first block.
        """
        self._drop_claim(seq_id)
        start = -1
        while start < 0 and expected:
            start = self._state.find(bytes(expected))
            if start < 0:
                expected //= 2
        if start < 0:
            start, expected = self._state.find(_CLAIMED), 1
        self._claims[seq_id] = range(start, start + expected)
        self._state[start : start + expected] = bytes([_CLAIMED]) * expected
        return start

    def _drop_claim(self, seq_id: int) -> None:
        for block in self._claims.pop(seq_id, range(0)):
            if self._state[block] == _CLAIMED:
                self._state[block] = _FREE
