"""Whether hosts reach each other by TCP where gloo will, and how far their clocks are apart.

Every rank listens (its door); one rank a host visits those of the other hosts. A visitor shows a
word that only the job knows, and is told the time. Plain sockets: no process group exists yet.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType

from launch.env import GLOO_INTERFACE
from llama.errors import HardwareError
from llama.parallel.meeting.addresses import Address, address_on, address_towards, numeric

VISIT_TIMEOUT_S = 3.0
N_QUESTIONS = 8
_MOST_AT_ONCE = 16
_TIME = struct.Struct("!d")
_WORD_BYTES = 32

Share = Callable[[str], list[str]]
"""Gives every rank the texts of all ranks, in rank order. Collective."""


@dataclass(frozen=True)
class Place:
    """Where a door is. `problem` says why there is none, "" when it stands open."""

    rank: int
    ip: str = ""
    interface: str = ""
    port: int = 0
    word: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Visit:
    """What rank `visitor` met at the door of rank `door`; `problem` is "" when it got in.

    `round_trip_s` is the shortest of N_QUESTIONS; `clock_ahead_s`, taken from that one, is how much
    the door's clock is ahead of the visitor's.
    """

    visitor: int
    door: int
    problem: str = ""
    round_trip_s: float | None = None
    clock_ahead_s: float | None = None


def gloo_address(environ: Mapping[str, str]) -> Address:
    """The address that gloo listens on: of the interface it is told, else of this host's own name.

    Raises HardwareError when the interface has no address.
    """
    interface = environ.get(GLOO_INTERFACE)
    if interface:
        return address_on(interface)
    try:
        return address_towards(numeric(socket.gethostname()))
    except HardwareError:  # gloo does the same with a name that nobody knows
        return address_towards("127.0.0.1")


def visit_all(rank: int, speakers: Sequence[int], share: Share) -> list[Visit]:
    """Every visit between the `speakers`, one rank of each host; the same on all ranks. Collective.

    Every rank has a door and goes through its own, so that each is known to have a good address.
    """
    with ExitStack() as open_door:
        texts = share(json.dumps(asdict(_open(rank, open_door))))
        places = [Place(**json.loads(text)) for text in texts]
        others = speakers if rank in speakers else []
        goals = [p for p in places if p.rank == rank or (p.rank in others and not p.problem)]
        with ThreadPoolExecutor(_MOST_AT_ONCE) as visitors:
            visits = list(visitors.map(lambda place: visit(rank, place), goals))
        texts = share(json.dumps([asdict(made) for made in visits]))
    return [Visit(**fields) for text in texts for fields in json.loads(text)]


def visit(rank: int, place: Place) -> Visit:
    """Go through one door, as rank `rank`. Takes at most a few times VISIT_TIMEOUT_S."""
    if place.problem:
        return Visit(rank, place.rank, problem=place.problem)
    try:
        with socket.create_connection((place.ip, place.port), VISIT_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(place.word.encode())
            answers = [_ask(connection) for _ in range(N_QUESTIONS)]
    except OSError as error:
        where = f"{place.ip}:{place.port} ({place.interface})"
        return Visit(rank, place.rank, problem=f"{where}: {error}")
    round_trip_s, clock_ahead_s = min(answers)
    return Visit(rank, place.rank, round_trip_s=round_trip_s, clock_ahead_s=clock_ahead_s)


class Door:
    """Listens on a free port of `ip` as long as the body of its `with` runs.

    Answers those who know `word` with the time. Raises OSError.
    """

    def __init__(self, ip: str) -> None:
        self.word = secrets.token_hex(_WORD_BYTES // 2)
        self._server = _Server(ip, self.word.encode())
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128  # every host may come at once

    def __init__(self, ip: str, word: bytes) -> None:
        self.address_family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.word = word
        super().__init__((ip, 0), _Porter)


class _Porter(BaseRequestHandler):
    """One visitor; whoever is slow or does not know the word is left standing."""

    request: socket.socket
    server: _Server

    def handle(self) -> None:
        self.request.settimeout(VISIT_TIMEOUT_S)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if not hmac.compare_digest(_receive(self.request, _WORD_BYTES), self.server.word):
                return
            while self.request.recv(1):
                self.request.sendall(_TIME.pack(time.time()))
        except OSError:
            return


def _open(rank: int, open_door: ExitStack) -> Place:
    try:
        address = gloo_address(os.environ)
        door = open_door.enter_context(Door(address.ip))
    except HardwareError as error:
        return Place(rank, problem=str(error))
    except OSError as error:
        return Place(rank, problem=f"cannot listen on {address.ip} ({address.interface}): {error}")
    return Place(rank, address.ip, address.interface, door.port, door.word)


def _ask(connection: socket.socket) -> tuple[float, float]:
    """Round trip and how much the other clock is ahead, if both ways took equally long."""
    here, began = time.time(), time.perf_counter()
    connection.sendall(b"?")
    (there,) = _TIME.unpack(_receive(connection, _TIME.size))
    round_trip_s = time.perf_counter() - began
    return round_trip_s, there - (here + round_trip_s / 2)


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    """Exactly `n_bytes`. Raises ConnectionError when the other side hangs up before."""
    data = b""
    while len(data) < n_bytes:
        more = connection.recv(n_bytes - len(data))
        if not more:
            raise ConnectionError("hung up; something else listens there")
        data += more
    return data
