"""Which of this machine's addresses and interfaces leads to another machine.

Asks the kernel's routing table; nothing is sent. Knows nothing of ranks or of what will connect.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from llama.errors import HardwareError


class _Entry(ctypes.Structure):
    """The head of `struct ifaddrs`, which Linux and macOS share."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]
_IS_UP = 1
_PLACES = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Offset and length of the address in `struct sockaddr_in` and `sockaddr_in6`, in bytes."""


@dataclass(frozen=True)
class Address:
    """A numeric `ip` of this machine, and the network interface that has it."""

    ip: str
    interface: str

    @property
    def is_loopback(self) -> bool:
        """Whether other machines cannot reach it."""
        return ipaddress.ip_address(self.ip.partition("%")[0]).is_loopback


def numeric(host: str) -> str:
    """The first address of `host`, a name or an address. Raises HardwareError."""
    return str(_resolve(host, 0)[0][1][0])


def address_towards(host: str, port: int = 9) -> Address:
    """The address from which this machine reaches `host`, itself included.

    Connecting a UDP socket only looks up the route. Raises HardwareError when the name is unknown
    or no route leads there.
    """
    problem: OSError | None = None
    for family, place in _resolve(host, port):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)
                own_ip: str = probe.getsockname()[0]
        except OSError as error:
            problem = problem or error
            continue
        return _of_this_machine(own_ip)
    raise HardwareError(
        f"no route from {socket.gethostname()} to {host} ({problem}); is its network interface up, "
        "and are both machines on one network?"
    ) from problem


def address_for_others(host: str) -> Address:
    """The address of this machine by which others reach it as `host`, to listen on.

    Many systems map their own name to 127.0.1.1, where nobody else gets through: the machine's
    only other address is taken then. Raises HardwareError when `host` is not this machine, or
    when there are several to choose from.
    """
    host = _known_name(host)
    own = {address.ip: address for address in own_addresses()}
    found = next((own[ip] for _, (ip, *_) in _resolve(host, 0) if ip in own), None)
    if found and not found.is_loopback:
        return found
    ip = numeric(host)
    if ipaddress.ip_address(ip.partition("%")[0]).is_loopback:
        if host in (ip, "localhost"):  # meant as it stands: every node is on this machine
            return address_towards(host)
        return _only_reachable(host, ip, list(own.values()))
    raise HardwareError(
        f"{host} ({ip}) is no address of this machine ({_listed(list(own.values()))}), so node 0 "
        "cannot listen there; name the machine that runs node 0, by one of its own addresses"
    )


def address_on(interface: str) -> Address:
    """Where gloo listens when GLOO_SOCKET_IFNAME is `interface`, or a list that begins with it.

    Raises HardwareError when there is no such interface that has an address.
    """
    first = interface.partition(",")[0]
    known = own_addresses()
    found = [address for address in known if address.interface == first]
    if not found:
        names = ", ".join(dict.fromkeys(address.interface for address in known))
        raise HardwareError(
            f"GLOO_SOCKET_IFNAME is {first!r}, but {socket.gethostname()} has no such interface "
            f"that is up and has an address; it has {names}"
        )
    return min(found, key=lambda address: ":" in address.ip)


def own_addresses() -> list[Address]:
    """Every address of every interface that is up, in the kernel's order.

    By getifaddrs, as gloo and NCCL look up the interface that they are told. POSIX only.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_Entry)()
    if libc.getifaddrs(ctypes.byref(head)):
        code = ctypes.get_errno()
        raise HardwareError(f"the network interfaces cannot be listed: {os.strerror(code)}")
    found: list[Address] = []
    try:
        entry = head
        while entry:
            known = entry.contents
            if known.address and known.flags & _IS_UP:
                found.extend(_address(known))
            entry = known.next
    finally:
        libc.freeifaddrs(head)
    return found


def _known_name(host: str) -> str:
    """`host`, or this machine's own name where that is meant: a pod runs before DNS knows it."""
    own_name = socket.gethostname()
    if host.partition(".")[0] == own_name.partition(".")[0]:
        try:
            _resolve(host, 0)
        except HardwareError:
            return own_name
    return host


def _only_reachable(host: str, ip: str, own: list[Address]) -> Address:
    known = [address for address in own if not address.is_loopback and "." in address.ip]
    if len(known) == 1:
        return known[0]
    raise HardwareError(
        f"{host} is {ip} on this machine, which no other machine can reach, and this machine has "
        f"{len(known)} other addresses to choose from ({_listed(known)}); give the master address "
        "as a number"
    )


def _resolve(host: str, port: int) -> list[tuple[int, tuple[str, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:  # a label over 63 letters is a UnicodeError
        raise HardwareError(
            f"{socket.gethostname()} does not know an address for {host!r} ({error}); check the "
            "spelling, /etc/hosts and DNS, or give a numeric address"
        ) from error
    # IPv4 first, on every machine alike, whatever their resolvers prefer
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    return [(family, place) for family, _, _, _, place in found]  # type: ignore[misc]


def _of_this_machine(ip: str) -> Address:
    own = own_addresses()
    for address in own:
        if address.ip == ip:
            return address
    # the kernel answers for all of 127/8, of which the interface lists one address
    loopback = next((known for known in own if known.is_loopback), None)
    if loopback and ipaddress.ip_address(ip.partition("%")[0]).is_loopback:
        return Address(ip, loopback.interface)
    raise HardwareError(f"no network interface of {socket.gethostname()} has the address {ip}")


def _listed(addresses: list[Address]) -> str:
    return ", ".join(f"{known.ip} on {known.interface}" for known in addresses) or "none"


def _address(entry: _Entry) -> Iterator[Address]:
    start = ctypes.string_at(entry.address, 2)
    family = int.from_bytes(start, sys.byteorder) if sys.platform == "linux" else start[1]
    if family not in _PLACES:
        return
    offset, length = _PLACES[socket.AddressFamily(family)]
    packed = ctypes.string_at(entry.address + offset, length)
    name = entry.name.decode()
    ip = socket.inet_ntop(family, packed)
    is_link_local = family == socket.AF_INET6 and ipaddress.ip_address(ip).is_link_local
    yield Address(f"{ip}%{name}" if is_link_local else ip, name)
