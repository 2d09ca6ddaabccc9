"""From pieces of a tensor as they come off a file to whole groups of its columns.

A tile need not end where a group ends: what is not whole yet waits here, and nothing else does, so
a layer is never held as it was stored. How a group is stored is not known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS_AT_ONCE = 2**18
"""Elements that are turned into fp32 together: 1 MiB stays in a core's cache."""

StoreGroups = Callable[[slice, range, Tensor], None]
"""Takes rows, groups, and their elements, fp32 (rows, groups · group_size)."""


class GroupIntake:
    """The Intake of a slice of `shape` whose column 0 begins a group.

    A last group that is short is filled with zeros. `store` gets each group of each row once, on
    `device`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        group_size: int,
        device: torch.device,
        store: StoreGroups,
    ) -> None:
        self.device = device
        self._n_rows, self._n_columns = shape
        self._group_size = group_size
        self._store = store
        self._waiting: dict[int, Tensor] = {}
        """By group: its elements (rows, width), as far as they have come."""
        self._missing: dict[int, int] = {}
        self._lock = threading.Lock()

    def direct(self, where: tuple[slice, ...], dtype: torch.dtype) -> Tensor | None:
        return None

    def put(self, where: tuple[slice, ...], source: Tensor) -> None:
        rows, columns = where
        size = self._group_size
        first, stop = columns.start // size, -(-columns.stop // size)
        is_end = columns.stop == self._n_columns
        whole = range(-(-columns.start // size), stop if is_end else columns.stop // size)
        if whole:
            begin = whole.start * size - columns.start
            part = source[:, begin : begin + len(whole) * size]
            self._quantise(rows, whole, part)
        for group in {first, stop - 1}:
            if group not in whole:
                self._wait(group, rows, columns, source)

    def _wait(self, group: int, rows: slice, columns: slice, source: Tensor) -> None:
        """Keep what `source` has of `group`, and pass the group on if that was the last of it."""
        begin = group * self._group_size
        width = min(self._group_size, self._n_columns - begin)
        start, stop = max(columns.start, begin), min(columns.stop, begin + width)
        part = source[:, start - columns.start : stop - columns.start]
        with self._lock:
            if group not in self._waiting:
                self._waiting[group] = torch.empty(self._n_rows, width, dtype=source.dtype)
                self._missing[group] = self._n_rows * width
            self._waiting[group][rows, start - begin : stop - begin] = part
            self._missing[group] -= part.numel()
            is_whole = self._missing[group] == 0
            held = self._waiting.pop(group) if is_whole else None
        if held is not None:
            self._quantise(slice(0, self._n_rows), range(group, group + 1), held)

    def _quantise(self, rows: slice, groups: range, part: Tensor) -> None:
        width = len(groups) * self._group_size
        step = max(1, ELEMENTS_AT_ONCE // width)
        for start in range(0, len(part), step):
            block = part[start : start + step].to(self.device, torch.float32)
            if block.shape[1] < width:
                block = F.pad(block, (0, width - block.shape[1]))
            first = rows.start + start
            self._store(slice(first, first + len(block)), groups, block)
