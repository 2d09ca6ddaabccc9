"""The communicator of an axis that spans hosts with several of its ranks each.

What all ranks have to say is put together within every host first, then between one leader per
host, then told to the rest of each host: between hosts travels one message a host, not one a rank.
Knows no transport: it is made of three communicators of other kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama.parallel.comm import Communicator, Done, Work

_LEADER = 0


class HierarchicalCommunicator(Communicator):
    """The ranks of `whole`, where `hosts` has the axis's ranks by host, each host's in order.

    `inside` joins the ranks of this one's host. Its rank 0 leads, and the leaders are joined by
    `between`, in the order of `hosts`; other ranks have None there. `whole` carries messages
    between hosts, and what only one rank is to have.
    """

    def __init__(
        self,
        whole: Communicator,
        *,
        inside: Communicator,
        between: Communicator | None,
        hosts: Sequence[Sequence[int]],
    ) -> None:
        self._whole = whole
        self._inside = inside
        self._between = between
        self._hosts = hosts
        self._host_of = {rank: i for i, ranks in enumerate(hosts) for rank in ranks}
        self._own = self._host_of[whole.rank]
        assert inside.size == len(hosts[self._own]) and (between is None) == (inside.rank > _LEADER)

    @property
    def rank(self) -> int:
        return self._whole.rank

    @property
    def size(self) -> int:
        return self._whole.size

    def all_reduce(self, x: Tensor) -> Tensor:
        total = self._inside.all_reduce(x)
        if self._between is not None:
            total = self._between.all_reduce(total)
        return self._inside.broadcast(total, src=_LEADER)

    def all_reduce_async(self, x: Tensor) -> Work:
        total = self.all_reduce(x)
        if total is not x:
            x.copy_(total)
        return Done()

    def all_gather(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """As everywhere; a host of few ranks sends as much between hosts as one of many."""
        own = self._inside.gather(x.unsqueeze(0), dst=_LEADER, dim=0)
        by_rank = x.new_empty(self.size, *x.shape)
        if self._between is not None:
            assert own is not None
            most = max(map(len, self._hosts))
            padded = own.new_zeros(most, *x.shape)
            padded[: len(own)] = own
            by_host = self._between.all_gather(padded.unsqueeze(0), dim=0)  # (hosts, most, ...)
            for i, ranks in enumerate(self._hosts):
                by_rank[list(ranks)] = by_host[i, : len(ranks)]
        by_rank = self._inside.broadcast(by_rank, src=_LEADER)
        return torch.cat(by_rank.unbind(), dim)

    def gather(self, x: Tensor, *, dst: int = 0, dim: int = -1) -> Tensor | None:
        return self._whole.gather(x, dst=dst, dim=dim)

    def broadcast(self, x: Tensor, *, src: int = 0) -> Tensor:
        home = self._host_of[src]
        if self._own == home:
            x = self._inside.broadcast(x, src=self._hosts[home].index(src))
        if self._between is not None:
            x = self._between.broadcast(x, src=home)
        return x if self._own == home else self._inside.broadcast(x, src=_LEADER)

    def isend(self, x: Tensor, dst: int) -> Work:
        comm, peer = self._way_to(dst)
        return comm.isend(x, peer)

    def irecv(self, out: Tensor, src: int) -> Work:
        comm, peer = self._way_to(src)
        return comm.irecv(out, peer)

    def barrier(self) -> None:
        self._inside.barrier()
        if self._between is not None:
            self._between.barrier()
        self._inside.barrier()

    def _way_to(self, peer: int) -> tuple[Communicator, int]:
        """Who carries messages to `peer`, and its rank there."""
        if self._host_of[peer] != self._own:
            return self._whole, peer
        return self._inside, self._hosts[self._own].index(peer)
