"""The protocol in C (`llama/native/src/shm.c`), bound with ctypes."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any, cast

from torch import Tensor

from llama.native import library
from llama.parallel.shm.channel import SHARED_MIN_BYTES, Attempt, PythonChannel
from llama.parallel.shm.layout import HEADER_STRIDE
from llama.parallel.shm.ring import Message
from llama.parallel.shm.segment import Segment
from llama.parallel.shm.signature import CODES, signature_of
from llama.parallel.shm.waiting import Pace


class _State(ctypes.Structure):
    """`channel` of src/shm.c."""

    _fields_ = [
        ("base", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("n_ranks", "rank", "header_offset", "header_stride", "slot_offset", "slot_bytes"),
                *("ring_header_offset", "ring_offset", "ring_bytes"),
                *("spin_us", "awake_us", "waited_us", "patience_us", "offset", "phase"),
            )
        ),
    ]


_STATE, _DATA = ctypes.c_void_p, ctypes.c_void_p
_INT, _WORD = ctypes.c_int64, ctypes.c_uint64
_ARGUMENTS: dict[str, list[type[ctypes._SimpleCData[Any]]]] = {
    "shm_all_reduce": [_STATE, _DATA, _INT, _INT, _INT, _WORD],
    "shm_gather": [_STATE, _DATA, _INT, _DATA, _WORD],
    "shm_broadcast": [_STATE, _DATA, _INT, _INT, _WORD],
    "shm_barrier": [_STATE, _WORD],
    "shm_push": [_STATE, _INT, _DATA, _INT, _WORD, ctypes.c_void_p],
    "shm_pull": [_STATE, _INT, _DATA, _INT, _WORD, ctypes.c_void_p],
}


class NativeChannel(PythonChannel):
    """As its base, which is there for the dtypes that C cannot sum. Waits without the GIL."""

    is_native = True

    def __init__(
        self, segment: Segment, rank: int, *, is_crowded: bool, compiled: ctypes.CDLL
    ) -> None:
        super().__init__(segment, rank, is_crowded=is_crowded)
        layout, state = segment.layout, _State(**vars(self.pace))
        self._state, self.pace = state, cast(Pace, state)
        state.base = self._bytes.data_ptr()
        state.n_ranks, state.rank = layout.n_ranks, rank
        state.header_offset, state.header_stride = 0, HEADER_STRIDE
        state.slot_offset, state.slot_bytes = layout.slot_offset, layout.slot_bytes
        state.ring_header_offset = layout.ring_header_offset
        state.ring_offset, state.ring_bytes = layout.ring_offset, layout.ring_bytes
        self._address = ctypes.addressof(state)
        functions = {name: _bound(compiled, name) for name in _ARGUMENTS}
        self._c_reduce, self._c_gather = functions["shm_all_reduce"], functions["shm_gather"]
        self._c_broadcast, self._c_barrier = functions["shm_broadcast"], functions["shm_barrier"]
        self._c_push, self._c_pull = functions["shm_push"], functions["shm_pull"]

    def all_reduce(self, x: Tensor) -> Attempt:
        code = CODES.get(x.dtype)
        if code is None:
            return super().all_reduce(x)
        n_bytes = x.nbytes
        is_shared = self.size > 2 and n_bytes >= SHARED_MIN_BYTES
        signature = signature_of("all_reduce", x)
        return partial(
            self._c_reduce, self._address, x.data_ptr(), n_bytes, code, is_shared, signature
        )

    def gather(self, x: Tensor, out: Tensor | None, *, dst: int | None) -> Attempt:
        target = None if out is None else out.data_ptr()
        signature = signature_of("gather", x, root=dst)
        return partial(self._c_gather, self._address, x.data_ptr(), x.nbytes, target, signature)

    def broadcast(self, x: Tensor, *, src: int) -> Attempt:
        signature = signature_of("broadcast", x, root=src)
        return partial(self._c_broadcast, self._address, x.data_ptr(), x.nbytes, src, signature)

    def barrier(self) -> Attempt:
        return partial(self._c_barrier, self._address, signature_of("barrier"))

    def push(self, message: Message) -> int:
        return self._message(self._c_push, message)

    def pull(self, message: Message) -> int:
        return self._message(self._c_pull, message)

    def _message(self, function: ctypes._NamedFuncPointer, message: Message) -> int:
        data, done = message.data, ctypes.addressof(message.done)
        args = (message.peer, data.data_ptr(), len(data), message.signature, done)
        return int(function(self._address, *args))


def make_channel(
    segment: Segment, rank: int, *, is_crowded: bool, native: bool | None
) -> PythonChannel:
    """In C where that can be had, unless `native` is False."""
    compiled = None if native is False else library("shm")
    if compiled is None:
        return PythonChannel(segment, rank, is_crowded=is_crowded)
    return NativeChannel(segment, rank, is_crowded=is_crowded, compiled=compiled)


def _bound(compiled: ctypes.CDLL, name: str) -> ctypes._NamedFuncPointer:
    function = compiled[name]  # a new object, whose types nobody else sets
    function.argtypes = _ARGUMENTS[name]
    function.restype = ctypes.c_int
    return function
