"""Own addresses, on this machine and on two hosts whose own names lead to 127.0.1.1."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from llama.errors import HardwareError
from llama.parallel.meeting.addresses import (
    Address,
    address_for_others,
    address_on,
    address_towards,
    numeric,
    own_addresses,
)
from tests.helpers import netns

CODE = """
import json, sys
from llama.errors import HardwareError
from llama.parallel.meeting import addresses
answers = []
for function, host in json.loads(sys.argv[1]):
    try:
        found = getattr(addresses, function)(host)
        answers.append([found.ip, found.interface])
    except HardwareError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[netns.TwoHosts]:
    if problem := netns.problem():
        pytest.skip(problem)
    with netns.two_hosts() as hosts:
        yield hosts


def test_loopback_leads_to_itself() -> None:
    lo = address_towards("127.0.0.1")
    assert lo.ip == "127.0.0.1"
    assert lo.is_loopback
    assert lo.interface in {name for _, name in socket.if_nameindex()}
    assert lo in own_addresses()
    assert address_for_others("localhost").is_loopback  # nodes that share this machine


def test_all_of_127_is_loopback() -> None:
    assert address_towards("127.0.0.77").interface == address_towards("127.0.0.1").interface


def test_own_addresses_can_be_bound() -> None:
    for address in own_addresses():
        family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
        info = socket.getaddrinfo(address.ip, 0, family, socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.bind(info[4])


def test_numbers_stay_numbers() -> None:
    assert numeric("127.0.0.1") == "127.0.0.1"
    assert numeric("::1") == "::1"


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 70])
def test_unknown_name_is_named(name: str) -> None:
    with pytest.raises(HardwareError, match=name) as caught:
        numeric(name)
    assert "/etc/hosts" in str(caught.value)


def test_address_of_another_machine_is_none_to_listen_on() -> None:
    with pytest.raises(HardwareError, match=r"192\.0\.2\.77.* is no address of this machine"):
        address_for_others("192.0.2.77")


def test_link_local_address_knows_its_interface() -> None:
    assert not Address("fe80::1%eth0", "eth0").is_loopback
    assert Address("::1", "lo").is_loopback


def ask(host: netns.Host, *questions: tuple[str, str]) -> list[list[str] | str]:
    output = host.run([sys.executable, "-c", CODE, json.dumps(questions)])
    answers: list[list[str] | str] = json.loads(output)
    return answers


def test_two_hosts_find_each_other(hosts: netns.TwoHosts) -> None:
    a, b = hosts.a, hosts.b
    own, other, by_number, listening = ask(
        a,
        ("address_towards", a.name),
        ("address_towards", b.name),
        ("address_towards", b.ip),
        ("address_for_others", a.name),
    )
    assert own[0] == "127.0.0.1"  # its name is 127.0.1.1 there
    assert other == by_number == listening == [a.ip, a.interface]


def test_a_host_knows_itself_by_a_name_that_dns_does_not_know_yet(hosts: netns.TwoHosts) -> None:
    """As node 0 in Kubernetes: LWS_LEADER_ADDRESS is "pod.service.namespace"."""
    a, b = hosts.a, hosts.b
    listening, other = ask(
        a,
        ("address_for_others", f"{a.name}.service.namespace"),
        ("address_for_others", f"{b.name}.service.namespace"),
    )
    assert listening == [a.ip, a.interface]
    assert isinstance(other, str)
    assert f"does not know an address for '{b.name}.service.namespace'" in other


def test_a_host_does_not_listen_for_another(hosts: netns.TwoHosts) -> None:
    (answer,) = ask(hosts.a, ("address_for_others", hosts.b.name))
    assert isinstance(answer, str)
    assert f"{hosts.b.name} ({hosts.b.ip}) is no address of this machine" in answer
    assert f"{hosts.a.ip} on {hosts.a.interface}" in answer


def test_several_addresses_to_choose_from_are_listed(hosts: netns.TwoHosts) -> None:
    a = hosts.a
    a.run(["ip", "address", "add", "10.99.0.1/24", "dev", a.interface])
    try:
        by_name, by_number = ask(
            a, ("address_for_others", a.name), ("address_for_others", "10.99.0.1")
        )
    finally:
        a.run(["ip", "address", "delete", "10.99.0.1/24", "dev", a.interface])
    assert isinstance(by_name, str)
    assert f"{a.ip} on {a.interface}, 10.99.0.1 on {a.interface}" in by_name
    assert by_number == ["10.99.0.1", a.interface]


def test_no_route_is_said(hosts: netns.TwoHosts) -> None:
    hosts.a.run(["ip", "route", "delete", "default"])
    try:
        (answer,) = ask(hosts.a, ("address_towards", hosts.b.name))
    finally:
        hosts.a.run(["ip", "route", "add", "default", "via", "10.77.1.254"])
    assert isinstance(answer, str)
    assert answer.startswith(f"no route from {hosts.a.name} to {hosts.b.name} ")


def test_an_interface_that_is_not_there_is_told() -> None:
    loopback = address_towards("127.0.0.1")
    assert address_on(f"{loopback.interface},other") == loopback
    with pytest.raises(HardwareError, match=r"GLOO_SOCKET_IFNAME is 'nowhere0', but .* it has "):
        address_on("nowhere0")
