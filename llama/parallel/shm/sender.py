"""Messages that did not fit into their ring at once: a thread that streams them.

The rank goes on meanwhile. The thread exists from the first such message on, and sleeps while
there is none.
"""

from __future__ import annotations

import threading
from collections import deque

from llama.parallel.shm.channel import PythonChannel
from llama.parallel.shm.ring import Message
from llama.parallel.shm.waiting import Status

_PATIENCE_US = 5_000


class Parcel:
    """A message that the thread sends; `is_done` is set however that ends."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.is_done = threading.Event()
        self.is_lost = False


class Sender:
    """`channel` is the thread's own. Parcels to one rank arrive in order, and wait for no other."""

    def __init__(self, channel: PythonChannel) -> None:
        channel.pace.spin_us = channel.pace.awake_us = 0  # the core is for whoever computes
        channel.pace.patience_us = _PATIENCE_US
        self._channel = channel
        self._queues: dict[int, deque[Parcel]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def is_busy(self, dst: int) -> bool:
        """Whether something is on its way to `dst` that a new message has to wait for."""
        return bool(self._queues.get(dst))

    def submit(self, message: Message) -> Parcel:
        parcel = Parcel(message)
        with self._changed:
            self._queues.setdefault(message.peer, deque()).append(parcel)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="llama-shm-sender", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        return parcel

    def close(self) -> None:
        """Drop what is left. The channel has hung up already. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        waited_us = 0
        while True:
            with self._changed:
                while not self._is_closed and not any(self._queues.values()):
                    self._changed.wait()
                if self._is_closed:
                    self._drop_all()
                    return
                heads = [queue[0] for queue in self._queues.values() if queue]
            before = [parcel.message.done.value for parcel in heads]
            self._channel.pace.waited_us = waited_us
            self._channel.pace.patience_us = _PATIENCE_US // len(heads)
            for parcel in heads:
                self._advance(parcel)
            has_moved = before != [parcel.message.done.value for parcel in heads]
            waited_us = 0 if has_moved else waited_us + _PATIENCE_US

    def _advance(self, parcel: Parcel) -> None:
        status = self._channel.push(parcel.message)
        if status == Status.AGAIN:
            return
        parcel.is_lost = status != Status.DONE
        with self._changed:
            self._queues[parcel.message.peer].popleft()
        parcel.is_done.set()

    def _drop_all(self) -> None:
        for queue in self._queues.values():
            for parcel in queue:
                parcel.is_lost = True
                parcel.is_done.set()
        self._queues.clear()
