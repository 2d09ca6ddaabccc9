"""Where everything lies in the memory that the ranks of an axis share.

    rank headers    step (u64), signatures of the even and of the odd step (2 u64), closed (u64)
    ring headers    of every ordered pair: bytes written (u64), bytes read (u64)
    slots           two for each rank: what it brings to the even and to the odd steps
    rings           of every ordered pair: messages under way

What different ranks write never shares a cache line. The C side gets these numbers, so that only
the order within a header is written down twice (`src/shm.c`).
"""

from __future__ import annotations

from dataclasses import dataclass

WORD_BYTES = 8
PAGE_BYTES = 4096
HEADER_STRIDE = 256
RING_HEADER_BYTES = 256
TAIL_OFFSET = 128
SLOT_BYTES = 128 * 1024
"""Two of a rank stay in its core's L2 cache; larger tensors go through in pieces."""
_ALL_RINGS_BYTES = 4 * 1024 * 1024
_MIN_RING_BYTES = 16 * 1024


def ring_bytes_for(n_ranks: int) -> int:
    """1 MiB for two ranks, less for each pair of many."""
    share = _ALL_RINGS_BYTES // (n_ranks * n_ranks)
    return max(_MIN_RING_BYTES, share // PAGE_BYTES * PAGE_BYTES)


@dataclass(frozen=True)
class SegmentLayout:
    """All offsets are in bytes from the beginning; both sizes are multiples of a page."""

    n_ranks: int
    slot_bytes: int
    ring_bytes: int

    @property
    def ring_header_offset(self) -> int:
        return self.n_ranks * HEADER_STRIDE

    @property
    def slot_offset(self) -> int:
        end = self.ring_header_offset + self.n_ranks**2 * RING_HEADER_BYTES
        return -(-end // PAGE_BYTES) * PAGE_BYTES

    @property
    def ring_offset(self) -> int:
        return self.slot_offset + 2 * self.n_ranks * self.slot_bytes

    @property
    def nonce_offset(self) -> int:
        """A page at the end with what tells this segment from any other."""
        return self.ring_offset + self.n_ranks**2 * self.ring_bytes

    @property
    def n_bytes(self) -> int:
        return self.nonce_offset + PAGE_BYTES

    def header(self, rank: int) -> int:
        return rank * HEADER_STRIDE

    def slot(self, rank: int, parity: int) -> int:
        return self.slot_offset + (2 * rank + parity) * self.slot_bytes

    def ring_header(self, src: int, dst: int) -> int:
        return self.ring_header_offset + (src * self.n_ranks + dst) * RING_HEADER_BYTES

    def ring(self, src: int, dst: int) -> int:
        return self.ring_offset + (src * self.n_ranks + dst) * self.ring_bytes
