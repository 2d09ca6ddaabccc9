"""The doors of preflight on real sockets: who gets in, what the clock is, and who is refused."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from launch.preflight import doors
from launch.preflight.doors import Door, Place, gloo_address, visit
from llama.errors import HardwareError
from llama.parallel.meeting.addresses import address_towards

LOOPBACK = "127.0.0.1"


def test_a_door_tells_the_time_to_who_knows_the_word() -> None:
    with Door(LOOPBACK) as door:
        seen = visit(1, Place(0, LOOPBACK, "lo", door.port, door.word))
        stranger = visit(1, Place(0, LOOPBACK, "lo", door.port, "x" * len(door.word)))
    assert (seen.visitor, seen.door, seen.problem) == (1, 0, "")
    assert seen.round_trip_s is not None and seen.round_trip_s > 0
    assert seen.clock_ahead_s is not None and abs(seen.clock_ahead_s) < seen.round_trip_s
    assert "hung up; something else listens there" in stranger.problem


def test_a_clock_that_is_wrong_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door's handler runs in a thread of its own: only its clock is put forward."""

    def an_hour_ahead() -> float:
        here = threading.current_thread() is threading.main_thread()
        return time.monotonic() + (0 if here else 3600)

    monkeypatch.setattr(doors.time, "time", an_hour_ahead)
    with Door(LOOPBACK) as door:
        seen = visit(1, Place(0, LOOPBACK, "lo", door.port, door.word))
    assert seen.clock_ahead_s == pytest.approx(3600, abs=10)


def test_a_closed_port_is_refused() -> None:
    seen = visit(1, Place(0, LOOPBACK, "lo", closed_port(), "word"))
    assert f"{LOOPBACK}:" in seen.problem
    assert "Connection refused" in seen.problem


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "VISIT_TIMEOUT_S", 0.2)
    with socket.create_server((LOOPBACK, 0)) as silent:
        seen = visit(1, Place(0, LOOPBACK, "lo", silent.getsockname()[1], "word"))
    assert "timed out" in seen.problem


def test_the_address_is_that_of_the_interface_that_gloo_is_told() -> None:
    loopback = address_towards(LOOPBACK)
    assert gloo_address({"GLOO_SOCKET_IFNAME": f"{loopback.interface},other"}) == loopback
    with pytest.raises(HardwareError, match=r"'nowhere0', but .* has no such interface"):
        gloo_address({"GLOO_SOCKET_IFNAME": "nowhere0"})


def closed_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        port: int = free.getsockname()[1]
    return port
