"""The store that a job's processes share: hosted at one address only, or reached there.

TCPStore by itself listens on every interface, and has waits that its own time limit does not end.
Knows no ranks and no keys.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from llama.errors import HardwareError, RankTimeoutError
from llama.log import get_logger

RETRY_S = 0.2
"""Between two attempts to reach a store that is not there yet."""
ANSWER_S = 60.0
"""What may pass from the start of a connection to the store's first answer.

torch looks up the name of the address first, once a process: name servers that do not answer, up
to three of them, take 10 s each.
"""
SLOW_S = 5.0

_Result = TypeVar("_Result")


def host_store(ip: str, port: int, *, timeout_s: float) -> TCPStore:
    """Serve a store at the numeric address `ip` alone; `port` 0 takes a free one (`.port`).

    `timeout_s` limits every wait for a key. Raises HardwareError when the port is taken
    or this machine does not reach the address.
    """
    return serve_store(listen(ip, port), ip, timeout_s=timeout_s)


def listen(ip: str, port: int) -> socket.socket:
    """A socket for `serve_store`: who connects to it now will be answered then."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        return socket.create_server((ip, port), family=family, backlog=1024)
    except OSError as error:
        raise HardwareError(
            f"port {port} of {ip} cannot be listened on ({os.strerror(error.errno or 0)})"
            f"{_owner_of(port)}; choose another --master_port, or end what holds it"
        ) from error


def serve_store(listener: socket.socket, ip: str, *, timeout_s: float) -> TCPStore:
    """`host_store` on a socket that listens already. Threads begin here, and none before."""
    try:
        with _slow_names_told(ip):
            return TCPStore(
                ip,
                listener.getsockname()[1],
                is_master=True,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
                multi_tenant=True,  # torch remembers it, for a later meeting of this process
                master_listen_fd=listener.detach(),
            )
    except RuntimeError as error:
        raise HardwareError(
            f"this machine does not reach its own address {ip} ({' '.join(str(error).split())}); "
            "is the interface up that has it?"
        ) from error


def reach_store(
    ip: str, port: int, *, timeout_s: float, waiting: Callable[[str], None] | None = None
) -> TCPStore:
    """Connect to the store at `ip`, a numeric address, as soon as it is there.

    `waiting` is told after every attempt why there is no store yet. `timeout_s` is the limit here,
    and afterwards of every wait for a key. Raises RankTimeoutError when nobody listens in time,
    HardwareError when what listens is no store.
    """
    deadline = time.monotonic() + timeout_s
    while problem := _knock(ip, port):
        if time.monotonic() > deadline:
            raise RankTimeoutError(
                f"no store at {ip}:{port} within {timeout_s:.3g} s ({problem}); is the process "
                "that hosts it started, and does a firewall let this port through?"
            )
        if waiting:
            waiting(problem)
        time.sleep(RETRY_S)
    timeout = timedelta(seconds=timeout_s)

    def connect() -> TCPStore:
        return TCPStore(ip, port, is_master=False, timeout=timeout, wait_for_workers=False)

    try:
        with _slow_names_told(ip):
            return within(connect, min(ANSWER_S, max(timeout_s, SLOW_S)))
    except (TimeoutError, RuntimeError) as error:
        raise HardwareError(
            f"what listens on {ip}:{port} does not answer as a store does "
            f"({' '.join(str(error).split())}); is the port another program's?"
        ) from error


def within(call: Callable[[], _Result], limit_s: float) -> _Result:
    """The result or the error of `call`; TimeoutError when neither is there after `limit_s`.

    For store operations, which a dead connection or a stopped host blocks for ever. Such a call
    is left behind on a daemon thread.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="llama-store", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return results[0]


@contextmanager
def _slow_names_told(ip: str) -> Iterator[None]:
    """A warning when a first connection takes as long as a name server that does not answer."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    if took_s > SLOW_S:
        get_logger().warning(
            "connecting to the store took %.0f s, as it will in every process: no name server "
            "says what %s is called; a line for it in /etc/hosts of every machine ends that",
            took_s,
            ip,
        )


def _knock(ip: str, port: int) -> str:
    """Why nobody can be reached there; empty when somebody accepts."""
    try:
        socket.create_connection((ip, port), timeout=2).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _owner_of(port: int) -> str:
    """': pid 77 (python train.py) listens there', as far as this user may see it (Linux)."""
    inodes = set(_listening_sockets(port))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone by now
            if any(os.readlink(entry) in inodes for entry in Path(process, "fd").iterdir()):
                command = Path(process, "cmdline").read_bytes().replace(b"\0", b" ")
                text = command.decode(errors="replace").strip()
                return f": pid {process.name} ({text[:80]}) listens there"
    return ""


def _listening_sockets(port: int) -> Iterator[str]:
    """The kernel's names ('socket:[12]') of sockets that listen on `port`, whatever address."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
