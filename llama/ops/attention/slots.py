"""Where the tokens of a step's sequences lie: rows of its tensors, slots of the flattened cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from llama.ops.batch import Batch


def visible(batch: Batch, index: int, window: int | None) -> range:
    """Positions that some new token of the sequence sees, its new tokens included."""
    stop = batch.context_lens[index]
    if window is None:
        return range(stop)
    return range(max(0, stop - batch.num_new_tokens[index] - window + 1), stop)


def overwrites(batch: Batch, index: int) -> bool:
    """Whether new tokens of the sequence are written over others that earlier new ones may see."""
    ring_size = batch.ring_blocks * batch.block_size
    return batch.num_new_tokens[index] > 1 and batch.context_lens[index] > ring_size


def rows_of(batch: Batch, group: Sequence[int]) -> slice | Tensor:
    """Rows of the group's new tokens, in order; a slice where they are a run."""
    first, last = group[0], group[-1]
    if last - first + 1 == len(group):
        return slice(batch.cu_seqlens[first], batch.cu_seqlens[last + 1])
    rows = [row for i in group for row in range(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])]
    return torch.tensor(rows, device=batch.positions.device)


def run_of(batch: Batch, index: int, positions: range) -> slice | None:
    """Slots of the sequence's tokens at `positions` where they are a run, else None."""
    size = batch.block_size
    blocks = blocks_of(batch, index, positions)
    if blocks != list(range(blocks[0], blocks[0] + len(blocks))):
        return None
    start = blocks[0] * size + positions.start % size
    return slice(start, start + len(positions))


def blocks_of(batch: Batch, index: int, positions: range) -> list[int]:
    """Blocks in which the sequence's tokens at `positions` lie, in order."""
    table, size = batch.block_tables[index], batch.block_size
    numbers = range(positions.start // size, (positions.stop - 1) // size + 1)
    return [table[number % batch.ring_blocks] for number in numbers]


def slots_of(batch: Batch, index: int, positions: range) -> slice | Tensor:
    """Slots (len(positions),) of the sequence's tokens at `positions`, not empty, in order."""
    run = run_of(batch, index, positions)
    return padded_slots(batch, [index], [positions]) if run is None else run


def padded_slots(batch: Batch, group: Sequence[int], spans: Sequence[range]) -> Tensor:
    """Slots (sequences · longest span,) of each sequence's tokens at its own span of positions.

    A padding slot is one of the sequence's own: what it holds is finite, and stays so when a mask
    has it multiplied by zero.
    """
    tables, skipped = _tables(batch, group, spans)
    device = batch.positions.device
    places = torch.arange(max(len(span) for span in spans), device=device)
    places = torch.where(is_padding(spans, device=device), 0, places) + skipped.unsqueeze(1)
    size = batch.block_size
    return (tables.gather(1, places // size) * size + places % size).flatten()


def packed_slots(batch: Batch, group: Sequence[int], spans: Sequence[range]) -> Tensor:
    """Slots (all tokens of all spans,) of each sequence's tokens, sequence after sequence."""
    tables, skipped = _tables(batch, group, spans)
    device, stops = batch.positions.device, list(accumulate(len(span) for span in spans))
    lengths = torch.tensor([len(span) for span in spans], device=device)
    # told how many come out, repeat_interleave need not wait for the device to count them
    owners = torch.arange(len(group), device=device)
    owners = owners.repeat_interleave(lengths, output_size=stops[-1])
    starts = torch.tensor([0, *stops[:-1]], device=device)
    places = torch.arange(stops[-1], device=device) + (skipped - starts)[owners]
    size = batch.block_size
    return tables[owners, places // size] * size + places % size


def padded_tables(batch: Batch, group: Sequence[int], spans: Sequence[range]) -> list[list[int]]:
    """Blocks of each sequence's tokens at its own span, up to the longest with its own first."""
    blocks = [blocks_of(batch, index, span) for index, span in zip(group, spans, strict=True)]
    longest = max(len(own) for own in blocks)
    return [own + own[:1] * (longest - len(own)) for own in blocks]


def _tables(batch: Batch, group: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor]:
    """`padded_tables`, and the tokens (sequences,) before a span in its first block."""
    device, size = batch.positions.device, batch.block_size
    tables = torch.tensor(padded_tables(batch, group, spans), device=device)
    return tables, torch.tensor([span.start % size for span in spans], device=device)


def is_padding(spans: Sequence[range], *, device: torch.device) -> Tensor:
    """(sequences, longest span) whether the place lies behind the sequence's span."""
    lengths = torch.tensor([len(span) for span in spans], device=device).unsqueeze(1)
    return torch.arange(max(len(span) for span in spans), device=device) >= lengths
