"""A Communicator over a torch.distributed process group (gloo or nccl).

gloo moves CPU tensors: those on another device are staged through the CPU here, so that compute
device and transport are chosen separately. torch's errors become typed ones here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from llama.errors import LlamaError, PeerLostError, RankMismatchError, RankTimeoutError
from llama.parallel.calls import CallMarks
from llama.parallel.comm import Communicator, Work
from llama.parallel.liveness.failure import FailureRecord

_MISMATCH = re.compile(r"mismatch between collectives", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_LOST = re.compile(r"gloo|nccl|connection|socket|broken pipe|monitoredBarrier", re.IGNORECASE)
_SOURCE_LOCATION = re.compile(r"^\[\S+:\d+\] ")


class TorchCommunicator(Communicator):
    """The ranks of `group` as the axis named `axis`.

    `timeout_s` bounds sends and receives over gloo, which else would have the timeout of the
    group's birth. Collectives, and everything over nccl, have the group's own.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        axis: str,
        timeout_s: float,
        failure: FailureRecord | None = None,
    ) -> None:
        self.axis = axis
        self._group: dist.ProcessGroup | None = group
        self._under_way: WeakSet[_TorchWork] = WeakSet()
        self._rank = dist.get_rank(group)
        global_ranks = dist.get_process_group_ranks(group)
        self._size = len(global_ranks)
        self._marks = CallMarks(axis, rank=self._rank, global_ranks=global_ranks, failure=failure)
        self._timeout = timedelta(seconds=timeout_s)
        self._gloo_devices = frozenset(gloo_backends(group))

    @property
    def group(self) -> dist.ProcessGroup:
        """Raises LlamaError after `close`."""
        if self._group is None:
            raise LlamaError(f"the {self.axis} axis was closed; build a new engine")
        return self._group

    def close(self) -> None:
        """Let go of the group, and so of its connections once its maker has destroyed it.

        gloo hangs up when nobody refers to the group any more, and that is what wakes a peer.
        """
        self._group = None
        for work in self._under_way:
            work.drop()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def all_reduce(self, x: Tensor) -> Tensor:
        self.all_reduce_async(x).wait()
        return x

    def all_reduce_async(self, x: Tensor) -> Work:
        ready = self._ready(x)
        with self.translated("all_reduce"):
            work = dist.all_reduce(ready, group=self.group, async_op=True)
        return _TorchWork(self, "all_reduce", work, ready=ready, result=x)

    def all_gather(self, x: Tensor, *, dim: int = -1) -> Tensor:
        ready = self._ready(x)
        parts = [torch.empty_like(ready) for _ in range(self.size)]
        with self.translated("all_gather"):
            dist.all_gather(parts, ready, group=self.group)
        return torch.cat(parts, dim).to(x.device)

    def gather(self, x: Tensor, *, dst: int = 0, dim: int = -1) -> Tensor | None:
        ready = self._ready(x)
        parts = [torch.empty_like(ready) for _ in range(self.size)] if dst == self.rank else None
        with self.translated("gather"):
            dist.gather(ready, parts, group=self.group, group_dst=dst)
        return None if parts is None else torch.cat(parts, dim).to(x.device)

    def broadcast(self, x: Tensor, *, src: int = 0) -> Tensor:
        ready = self._ready(x)
        with self.translated("broadcast"):
            dist.broadcast(ready, group=self.group, group_src=src)
        return x if ready is x or src == self.rank else x.copy_(ready)

    def isend(self, x: Tensor, dst: int) -> Work:
        ready = self._ready(x)
        with self.translated("send", peer=dst):
            work = dist.isend(ready, group=self.group, group_dst=dst)
        return _TorchWork(self, "send", work, ready=ready, result=ready, peer=dst)

    def irecv(self, out: Tensor, src: int) -> Work:
        is_direct = out.is_contiguous() and self._home(out) == out.device
        ready = (
            out if is_direct else torch.empty(out.shape, dtype=out.dtype, device=self._home(out))
        )
        with self.translated("receive", peer=src):
            work = dist.irecv(ready, group=self.group, group_src=src)
        return _TorchWork(self, "receive", work, ready=ready, result=out, peer=src)

    def barrier(self) -> None:
        device_ids = None if "cpu" in self._gloo_devices else [torch.cuda.current_device()]
        with self.translated("barrier"):
            dist.barrier(self.group, device_ids=device_ids)

    def track(self, work: _TorchWork) -> None:
        """Have `close` drop `work`, which keeps the group alive."""
        self._under_way.add(work)

    def patience(self, *, is_p2p: bool) -> timedelta | None:
        """How long to wait for work; None is the group's own. Over nccl it would block the host."""
        return self._timeout if is_p2p and "cpu" in self._gloo_devices else None

    @contextmanager
    def translated(self, op: str, *, peer: int | None = None) -> Iterator[None]:
        """torch's errors of the body as ours, saying which ranks were to take part in `op`.

        Everything that can wait for a rank happens in here, so here the heartbeat learns of it.
        """
        self._marks.begin(op, peer)
        try:
            yield
        except LlamaError:
            raise
        except RuntimeError as error:
            typed = self._typed(error, self._marks.name(op, peer))
            if typed is None:
                raise
            # torch's frames hold the group, which `close` could then not let go of
            raise typed from error.with_traceback(None)
        self._marks.end()

    def _typed(self, error: RuntimeError, what: str) -> LlamaError | None:
        """The error to raise instead; None when `error` is not about ranks."""
        text = _SOURCE_LOCATION.sub("", str(error)).partition(". This is typically")[0]
        if _MISMATCH.search(text):
            return RankMismatchError(f"{what}: {text}")
        if not _LOST.search(f"{type(error).__name__} {error}"):
            return None
        lost: LlamaError = PeerLostError(f"{what}: a rank is gone ({text})")
        if _TIMED_OUT.search(text):
            lost = RankTimeoutError(f"{what}: no answer in time ({text})")
        return self._marks.explained(lost)

    def _ready(self, x: Tensor) -> Tensor:
        """`x` itself if the transport can use it as it lies, else a copy that it can use."""
        return x.to(self._home(x)).contiguous()

    def _home(self, x: Tensor) -> torch.device:
        """Where the transport wants `x` to be: gloo could not move it everywhere it claims to."""
        return torch.device("cpu") if x.device.type in self._gloo_devices else x.device


class _TorchWork:
    """A collective or message under way; keeps its tensors alive and brings staged ones back."""

    def __init__(
        self,
        comm: TorchCommunicator,
        op: str,
        work: dist.Work | None,
        *,
        ready: Tensor,
        result: Tensor,
        peer: int | None = None,
    ) -> None:
        assert work is not None, "this rank is not in the group"
        self._comm = comm
        self._op = op
        self._work: dist.Work | None = work
        self._ready = ready
        self._result = result
        self._peer = peer
        comm.track(self)

    def drop(self) -> None:
        self._work = None

    def wait(self) -> None:
        patience = self._comm.patience(is_p2p=self._peer is not None)
        with self._comm.translated(self._op, peer=self._peer):
            if self._work is None:
                raise LlamaError(f"the {self._comm.axis} axis was closed during {self._op}")
            if patience is None:
                self._work.wait()
            else:
                self._work.wait(patience)
        if self._result is not self._ready:
            self._result.copy_(self._ready)


def gloo_backends(group: dist.ProcessGroup) -> dict[str, dist.ProcessGroupGloo]:
    """The part of `group` that is gloo, by the device types it serves."""
    found = {}
    for device in group._device_types:
        backend = group._get_backend(device)
        backend = getattr(backend, "wrapped_pg", backend)  # under TORCH_DISTRIBUTED_DEBUG=DETAIL
        if isinstance(backend, dist.ProcessGroupGloo):
            found[device.type] = backend
    return found
