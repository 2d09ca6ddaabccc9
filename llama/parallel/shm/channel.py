"""One rank's view of the shared memory, and the protocol of `src/shm.c` in Python.

A collective is a sequence of steps. In step s a rank waits until everybody has entered step s - 1
and so left s - 2, writes its part into its slot s % 2, publishes s, and reads the slots of those
that it needs once they have published s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llama.parallel.shm.ring import PythonRings
from llama.parallel.shm.segment import Segment
from llama.parallel.shm.signature import signature_of
from llama.parallel.shm.waiting import Condition, Status

SHARED_MIN_BYTES = 32 * 1024
"""From here on more than two ranks sum a share each, and collect the others'."""
_WIDENED = (torch.float16, torch.bfloat16)

Attempt = Callable[[], int]
"""Goes on with a call for as long as the pace allows, and says how far it has come."""
Steps = Iterator[Condition]


class _Disagreement(Exception):
    """Ranks called different things in the same step."""


class PythonChannel(PythonRings):
    """Calls come back as attempts, and none waits for longer than its pace allows. Tensors are
    contiguous ones on the CPU.

    One collective at a time; messages to or from one rank one after the other.
    """

    is_native = False

    def __init__(self, segment: Segment, rank: int, *, is_crowded: bool) -> None:
        super().__init__(segment, rank, is_crowded=is_crowded)
        self._others = [(self._step[r], r) for r in range(self.size) if r != rank]
        self._slots: dict[torch.dtype, list[list[Tensor]]] = {}

    def all_reduce(self, x: Tensor) -> Attempt:
        """`x` becomes the sum, taken in rank order; 16-bit floats are summed in fp32."""
        return self._attempt(self._reduce(x.view(-1), signature_of("all_reduce", x)))

    def gather(self, x: Tensor, out: Tensor | None, *, dst: int | None) -> Attempt:
        """`out` (size, numel) becomes everybody's `x`; None on a rank that needs nothing."""
        return self._attempt(self._gather(x.view(-1), out, signature_of("gather", x, root=dst)))

    def broadcast(self, x: Tensor, *, src: int) -> Attempt:
        """`x` becomes rank `src`'s."""
        word = signature_of("broadcast", x, root=src)
        return self._attempt(self._broadcast(x.view(-1), src, word))

    def barrier(self) -> Attempt:
        return self._attempt(self._barrier(signature_of("barrier")))

    def called(self, rank: int) -> int:
        """The signature of what `rank` called in the step that this rank is in."""
        step = self._words[self._step[self.rank]]
        return self._words[self._step[rank] + 1 + step % 2]

    def lagging(self) -> list[int]:
        """The ranks that have not come to the step that this rank is in."""
        own = self._words[self._step[self.rank]]
        return [rank for index, rank in self._others if self._words[index] < own]

    def _attempt(self, steps: Steps) -> Attempt:
        condition: Condition | None = ((), 0)  # another call may have to end first
        end = Status.DONE

        def go_on() -> int:
            nonlocal condition, end
            while condition is not None:
                status = self._await(condition)
                if status:
                    return status
                try:
                    condition = next(steps, None)
                except _Disagreement:  # for good: who tries again hears the same
                    condition, end = None, Status.MISMATCH
            return end

        return go_on

    def _enter(self, part: Tensor, signature: int) -> Steps:
        """Into the next step with `part` (flat) in this rank's slot; empty where it brings none."""
        step = self._words[self._step[self.rank]]
        yield self._others, step
        if len(part):
            self._slot(part.dtype, self.rank, step + 1)[: len(part)].copy_(part)
        self._words[self._step[self.rank] + 1 + (step + 1) % 2] = signature
        self._fence()
        self._words[self._step[self.rank]] = step + 1

    def _meet(self, signature: int, *, src: int | None = None) -> Steps:
        """Wait for all, or for rank `src`, in this rank's step. Raises _Disagreement."""
        step = self._words[self._step[self.rank]]
        awaited = self._others if src is None else [(self._step[src], src)]
        yield awaited, step
        self._fence()
        if any(self._words[index + 1 + step % 2] != signature for index, _ in awaited):
            raise _Disagreement

    def _pieces(self, x: Tensor) -> Sequence[Tensor]:
        """At least one, so that an empty tensor makes its step as well."""
        n = self._layout.slot_bytes // x.element_size()
        return [x[begin : begin + n] for begin in range(0, max(1, len(x)), n)]

    def _reduce(self, x: Tensor, signature: int) -> Steps:
        is_shared = self.size > 2 and len(x) * x.element_size() >= SHARED_MIN_BYTES
        for piece in self._pieces(x):
            yield from self._enter(piece, signature)
            yield from self._meet(signature)
            step = self._words[self._step[self.rank]]
            if not is_shared:
                self._sum(step, 0, piece)
                continue
            ends = [len(piece) * r // self.size for r in range(self.size + 1)]
            own = piece[ends[self.rank] : ends[self.rank + 1]]
            self._sum(step, ends[self.rank], own)
            yield from self._enter(own, signature)
            yield from self._meet(signature)
            for _, r in self._others:
                share = piece[ends[r] : ends[r + 1]]
                share.copy_(self._slot(x.dtype, r, step + 1)[: len(share)])

    def _gather(self, x: Tensor, out: Tensor | None, signature: int) -> Steps:
        begin = 0
        for piece in self._pieces(x):
            yield from self._enter(piece, signature)
            if out is not None:
                yield from self._meet(signature)
                step = self._words[self._step[self.rank]]
                for r in range(self.size):
                    part = self._slot(x.dtype, r, step)[: len(piece)]
                    out[r, begin : begin + len(piece)].copy_(part)
            begin += len(piece)

    def _broadcast(self, x: Tensor, src: int, signature: int) -> Steps:
        for piece in self._pieces(x):
            yield from self._enter(piece if src == self.rank else piece[:0], signature)
            if src != self.rank:
                yield from self._meet(signature, src=src)
                step = self._words[self._step[self.rank]]
                piece.copy_(self._slot(x.dtype, src, step)[: len(piece)])

    def _barrier(self, signature: int) -> Steps:
        yield from self._enter(self._bytes[:0], signature)
        yield from self._meet(signature)

    def _sum(self, step: int, begin: int, out: Tensor) -> None:
        """Everybody's slot from element `begin` on."""
        parts = [self._slot(out.dtype, r, step)[begin : begin + len(out)] for r in range(self.size)]
        if out.dtype in _WIDENED:
            total = parts[0].float()
            for part in parts[1:]:
                total += part
            out.copy_(total)
            return
        torch.add(parts[0], parts[1], out=out)
        for part in parts[2:]:
            out += part

    def _slot(self, dtype: torch.dtype, rank: int, step: int) -> Tensor:
        if dtype not in self._slots:
            self._slots[dtype] = [self._slots_of(r, dtype) for r in range(self.size)]
        return self._slots[dtype][rank][step % 2]

    def _slots_of(self, rank: int, dtype: torch.dtype) -> list[Tensor]:
        begins = [self._layout.slot(rank, parity) for parity in (0, 1)]
        return [self._bytes[b : b + self._layout.slot_bytes].view(dtype) for b in begins]
