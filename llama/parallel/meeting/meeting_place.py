"""The address where the ranks of a job meet, and the store there: rank 0's own, or a launcher's.

Knows how the ranks were launched, and none of the keys.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from llama.errors import HardwareError, RankTimeoutError
from llama.log import get_logger
from llama.parallel.meeting.addresses import address_for_others, address_towards, numeric
from llama.parallel.meeting.launched import LOOPBACK, Launched
from llama.parallel.meeting.stores import host_store, reach_store

REMINDER_S = 10.0
"""How often a rank that waits for others says so."""


@dataclass(frozen=True)
class MeetingPlace:
    """`ip` is numeric; `interface` is the one of this machine that leads there, or to the others
    when it is here."""

    ip: str
    port: int
    interface: str

    def host(self, *, timeout_s: float) -> TCPStore:
        """Serve the store, at this address alone; the one that this process has here already.

        Raises HardwareError when the port is another's, or the address is not this machine's.
        """
        try:
            return host_store(self.ip, self.port, timeout_s=timeout_s)
        except HardwareError as error:
            if getattr(error.__cause__, "errno", None) == errno.EADDRINUSE:
                with suppress(RuntimeError):  # an earlier meeting's, which torch remembers
                    return TCPStore(
                        self.ip,
                        self.port,
                        is_master=True,
                        timeout=timedelta(seconds=timeout_s),
                        wait_for_workers=False,
                        multi_tenant=True,
                    )
            raise HardwareError(
                f"rank 0 cannot host the store of the ranks: {error} (MASTER_PORT and MASTER_ADDR "
                "say where)"
            ) from error

    def reach(self, *, host: str, timeout_s: float) -> TCPStore:
        """Connect as soon as somebody serves the store: `host`, in words. Raises RankTimeoutError,
        or HardwareError when it is something else that answers."""
        began = time.monotonic()
        reminders_s = [REMINDER_S]

        def wait(problem: str) -> None:
            waited_s = time.monotonic() - began
            if waited_s > reminders_s[-1]:
                reminders_s.append(waited_s + REMINDER_S)
                get_logger().warning(
                    "waiting for %s: nobody answers at %s, port %d (%s; %.0f s so far)",
                    *(host, self.ip, self.port, problem, waited_s),
                )

        try:
            return reach_store(self.ip, self.port, timeout_s=timeout_s, waiting=wait)
        except RankTimeoutError as error:
            raise RankTimeoutError(f"{host} did not start: {error}") from error


def find_meeting_place(launched: Launched, *, timeout_s: float) -> MeetingPlace:
    """Where the job of this rank meets. Raises HardwareError for a name that leads nowhere."""
    if launched.is_on_one_host:
        ip = numeric(launched.master_addr) if launched.has_launcher_store else LOOPBACK
        return MeetingPlace(ip, launched.master_port, address_towards(LOOPBACK).interface)
    ip = _look_up(launched, timeout_s=timeout_s)
    own = address_towards(ip)
    if own.is_loopback:  # the machine's own name often is 127.0.1.1, where no other host gets in
        own = address_for_others(launched.master_addr)
        ip = ip if launched.has_launcher_store else own.ip
    return MeetingPlace(ip, launched.master_port, own.interface)


def _look_up(launched: Launched, *, timeout_s: float) -> str:
    """The numeric master address. A pod's name may be unknown until the pod has started."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return numeric(launched.master_addr)
        except HardwareError:
            if launched.source != "lws" or time.monotonic() > deadline:
                raise
        time.sleep(1)
