"""Which transport ranks get, for hosts that are not here and on real ranks."""

from __future__ import annotations

import logging

import pytest

from llama.errors import HardwareError, UnknownNameError
from llama.parallel.device import DeviceFacts
from llama.parallel.transport import TransportChoice, choose_transport


def ranks_on(hosts: str) -> list[DeviceFacts]:
    """A rank for every letter, on the host of that name."""
    return [DeviceFacts(host=name, shared_memory=name) for name in hosts]


@pytest.mark.parametrize(
    ("hosts", "kind", "asked", "name", "why"),
    [
        ("a", "cpu", None, "none", "one process"),
        ("a", "cuda", "shm", "none", "one process"),
        ("aa", "cpu", None, "shm", "all ranks share one host's memory"),
        ("aaa", "cpu", "auto", "shm", "all ranks share one host's memory"),
        ("aa", "cpu", "shm", "shm", "all ranks share"),
        ("aabb", "cpu", None, "shm", "within each of 2 hosts, gloo between them"),
        ("aab", "cpu", "shm", "shm", "within each of 2 hosts"),
        ("abc", "cpu", None, "gloo", "no two of the 3 ranks share a host's memory"),
        ("aa", "cpu", "gloo", "gloo", "transport gloo was asked for"),
        ("aa", "cuda", None, "gloo", "it moves CPU memory only"),
        ("aa", "cuda", "gloo", "gloo", "was asked for"),
    ],
)
def test_choice(hosts: str, kind: str, asked: str | None, name: str, why: str) -> None:
    choice = choose_transport(ranks_on(hosts), kind=kind, asked=asked)
    assert choice.name == name
    assert why in choice.reason and "\n" not in choice.reason
    assert choice.log_level() == logging.INFO


@pytest.mark.parametrize(
    ("hosts", "kind", "message"),
    [("aa", "cuda", "compute on device cuda"), ("ab", "cpu", "no two of the 2 ranks share")],
)
def test_shared_memory_that_cannot_be_had_is_refused(hosts: str, kind: str, message: str) -> None:
    with pytest.raises(HardwareError) as caught:
        choose_transport(ranks_on(hosts), kind=kind, asked="shm")
    assert str(caught.value).startswith("transport 'shm' cannot be used: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; leave the transport open or ask for 'gloo'")


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("name", ["", "SHM", "nccl", 3])
def test_unknown_transports_are_refused(name: str, n_ranks: int) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown transport {name!r}; known: auto, shm, gl"):
        choose_transport(ranks_on("a" * n_ranks), kind="cpu", asked=name)


def test_what_stands_in_is_warned_of_once() -> None:
    problem = HardwareError("only 64 KiB left")
    found = TransportChoice("shm", "").instead(problem)
    assert (found.name, found.reason) == (
        "gloo",
        "transport 'shm' cannot be used: only 64 KiB left",
    )
    assert [found.log_level(rank) for rank in (0, 1)] == [logging.WARNING, logging.INFO]


def test_what_was_asked_for_has_no_stand_in() -> None:
    with pytest.raises(HardwareError, match=r"only 64 KiB left; leave the transport open"):
        TransportChoice("shm", "", is_asked=True).instead(HardwareError("only 64 KiB left"))
