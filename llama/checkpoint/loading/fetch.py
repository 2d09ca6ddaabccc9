"""A plan carried out by one rank: turns in which ranks hand tiles on, then its own tiles.

The threads only read and copy; everything that is said to other ranks, the main thread says.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

from llama.checkpoint.loading.box import Box
from llama.checkpoint.loading.peak import PeakMemory
from llama.checkpoint.loading.progress import Progress
from llama.checkpoint.loading.ring import Ring, shared_ring
from llama.checkpoint.loading.sharing import Handed, Plan
from llama.checkpoint.loading.tile import Tile
from llama.checkpoint.loading.wants import OwnWant
from llama.errors import FailedElsewhereError, RankTimeoutError
from llama.parallel.agreement import check_agreement, in_step
from llama.parallel.comm import Communicator

TILE_BYTES = 16 * 2**20
"""What one thread reads at once: large for a file system, small for a counter of progress."""
_MAX_THREADS = 4
_LOOK_S = 0.25
"""How often ranks that read look whether the others still do."""

Task = Callable[[], None]


class Fetch:
    """Brings what this rank wants to where it belongs; `run` is collective over `local`."""

    def __init__(
        self,
        wants: Sequence[OwnWant],
        *,
        local: Communicator,
        progress: Progress,
        peak: PeakMemory,
    ) -> None:
        self.bytes_read = 0
        self.bytes_handed = 0
        self._wants: dict[int, list[OwnWant]] = {}
        for want in wants:
            self._wants.setdefault(want.tensor, []).append(want)
        self._local = local
        self._progress = progress
        self._peak = peak
        self._counting = threading.Lock()
        self._left = Counter[int]()
        """Bytes still to come, by tensor."""
        self._own = threading.local()
        devices = {want.intake.device for want in wants}
        self._device = devices.pop() if devices else torch.device("cpu")

    def run(self, plan: Plan) -> None:
        """Raises CheckpointError for files that cannot be read, RankMismatchError when this host's
        ranks opened different ones, RankTimeoutError when no bytes come any more,
        FailedElsewhereError when another rank failed.
        """
        check_agreement(
            self._local,
            {"what the ranks of a host share": plan.digest()},
            host=socket.gethostname(),
        )
        self._expect(plan)
        threads = ThreadPoolExecutor(
            min(_MAX_THREADS, max(1, _cores() // self._local.size)),
            thread_name_prefix="llama-load",
            initializer=self._start_thread,
        )
        is_stuck = False  # in a read, which may never return
        try:
            self._hand_on(plan, threads)
            self._read_all(plan.own, threads)
        except RankTimeoutError:
            is_stuck = True
            raise
        finally:
            threads.shutdown(wait=not is_stuck, cancel_futures=True)
        self._progress.wait(True)

    def _expect(self, plan: Plan) -> None:
        for tile in (*plan.own, *plan.common):
            for _, box in self._takers(tile):
                self._left[tile.tensor] += box.numel * tile.part.dtype.itemsize
        self._progress.expect(tensors=len(self._left), nbytes=self._left.total())

    def _start_thread(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # else pinned memory belongs to the first GPU

    # What several ranks want ----------------------------------------------------------------------

    def _hand_on(self, plan: Plan, threads: ThreadPoolExecutor) -> None:
        if not plan.common:
            return
        with shared_ring(self._local) as ring:
            if ring is None:
                self._read_all(self._parts_of(plan.common), threads)
                return
            turns = plan.rounds(n_ranks=self._local.size, slot_bytes=ring.slot_bytes)
            takes: list[Task] = []
            for number, turn in enumerate(turns):
                mine = [handed for handed in turn if handed.reader == self._local.rank]
                puts = [self._put(ring, number, handed) for handed in mine]
                with self._in_step():  # takes empty one half while puts fill the other
                    _do([*takes, *puts], threads)
                takes = [self._take(ring, number, handed) for handed in turn]
            with self._in_step():
                _do(takes, threads)

    def _put(self, ring: Ring, turn: int, handed: Handed) -> Task:
        def put() -> None:
            place = ring.slot(turn, handed.reader)[handed.offset :]
            self._read_into(handed.tile.lying_in(place), handed.tile)

        return put

    def _take(self, ring: Ring, turn: int, handed: Handed) -> Task:
        def take() -> None:
            source = handed.tile.lying_in(ring.slot(turn, handed.reader)[handed.offset :])
            self._give(handed.tile, source, handed=handed.reader != self._local.rank)

        return take

    def _parts_of(self, common: Iterable[Tile]) -> list[Tile]:
        boxes = [(tile, {box: None for _, box in self._takers(tile)}) for tile in common]
        return [tile.sub(box) for tile, different in boxes for box in different]

    # What this rank alone wants -------------------------------------------------------------------

    def _read_all(self, own: Iterable[Tile], threads: ThreadPoolExecutor) -> None:
        """Read tiles, looking now and then whether all is well with the other ranks."""
        tasks = [self._read(tile) for whole in own for tile in whole.cut(TILE_BYTES)]
        with self._in_step():  # threads that cannot start refuse tasks
            left: set[Future[None]] = {threads.submit(task) for task in tasks}
        n_left = 1
        while n_left:
            done, left = wait(left, timeout=_LOOK_S, return_when=FIRST_EXCEPTION)
            with self._in_step():
                for future in done:
                    future.result()
                if left:
                    self._progress.check_pace()
            n_left = int(self._local.all_gather(torch.tensor([len(left)]), dim=0).max())

    def _read(self, tile: Tile) -> Task:
        def read() -> None:
            (want, box), *others = self._takers(tile)
            target = want.intake.direct(box.within(want.box), tile.part.dtype)
            if not others and target is not None:
                self._read_into(target, tile)
                self._count_done(tile.tensor, tile.nbytes, handed=False)
            else:
                place = tile.lying_in(self._staging(tile.nbytes))
                self._read_into(place, tile)
                self._give(tile, place, handed=False)

        return read

    def _staging(self, nbytes: int) -> Tensor:
        """This thread's own bytes, from which copying to the device is fast."""
        held: Tensor | None = getattr(self._own, "staging", None)
        if held is None or held.numel() < nbytes:
            is_pinned = self._device.type == "cuda"
            held = torch.empty(max(nbytes, TILE_BYTES), dtype=torch.uint8, pin_memory=is_pinned)
            self._own.staging = held
        return held

    def _give(self, tile: Tile, source: Tensor, *, handed: bool) -> None:
        """Copy from `source`, which is all of `tile`, to every place where some of it belongs."""
        for want, box in self._takers(tile):
            want.intake.put(box.within(want.box), source[box.within(tile.box)])
            self._count_done(tile.tensor, box.numel * tile.part.dtype.itemsize, handed=handed)

    # Bookkeeping ----------------------------------------------------------------------------------

    def _takers(self, tile: Tile) -> list[tuple[OwnWant, Box]]:
        """Where of this rank something of `tile` belongs, and which region of the tensor it is."""
        wants = self._wants.get(tile.tensor, [])
        met = [(want, want.box & tile.box) for want in wants]
        return [(want, box) for want, box in met if box.numel]

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """As in_step over the host's ranks, which wait for the slowest; other hosts' errors too."""
        with in_step(self._local):
            yield
            if self._progress.failed_elsewhere:
                raise FailedElsewhereError("another host's rank failed and says why")
            self._progress.wait(True)
        self._progress.wait(False)

    def _read_into(self, place: Tensor, tile: Tile) -> None:
        if tile.part.path is not None:
            self._progress.read(tile.part.path.name)
        nbytes = tile.part.read_into(place)
        with self._counting:
            self.bytes_read += nbytes

    def _count_done(self, tensor: int, nbytes: int, *, handed: bool) -> None:
        with self._counting:
            self.bytes_handed += nbytes if handed else 0
            self._left[tensor] -= nbytes
            is_complete = self._left[tensor] == 0
        self._progress.add(tensors=int(is_complete), nbytes=nbytes)
        self._peak.sample()


def _do(tasks: Sequence[Task], threads: ThreadPoolExecutor) -> None:
    """Run all; raises what the first one that failed raised."""
    for future in [threads.submit(task) for task in tasks]:
        future.result()


def _cores() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
