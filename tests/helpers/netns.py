"""Two hosts on one machine: network namespaces, and a router between them that can lose it all.

    with two_hosts() as hosts:
        server = hosts.a.popen(["python", "server.py"])
        hosts.b.run(["python", "client.py", hosts.a.name])
        hosts.cut()

As on Debian a host's own name leads to 127.0.1.1 there, and to its address on the other host. Needs
root and iproute2: see `problem`. Whatever was started in a namespace is killed at its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

ETC = Path("/etc/netns")
"""Where `ip netns exec` finds the files that it shows under /etc; gone again after a test."""
DEAD = "10.77.3.1"


@dataclass(frozen=True)
class Host:
    """`name` is its hostname and that of its namespace; `ip` and `interface` face the other."""

    name: str
    ip: str
    interface: str

    def popen(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdout: int | IO[bytes] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program here, in a session of its own; both outputs go to `stdout`."""
        # the shell becomes the program, so the pid is the program's
        entered = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c"]
        script = 'hostname "$0" && exec "$@"'
        return subprocess.Popen(
            [*entered, script, self.name, *words],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout is not None else None,
            start_new_session=True,
            cwd=cwd,
        )

    def run(self, words: Sequence[str], *, timeout_s: float = 30) -> str:
        """What a program prints here. Raises when it fails or takes too long."""
        process = self.popen(words, stdout=subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"{words} on {self.name}: {output.decode()}")
        return output.decode()

    def pids(self) -> list[int]:
        """Every process here that is not a zombie."""
        return _pids(self.name)

    def kill_all(self) -> None:
        """End every process here."""
        _kill_all(self.name)


@dataclass(frozen=True)
class TwoHosts:
    """Hosts `a` and `b`, on two networks with a router in between."""

    a: Host
    b: Host
    router: str

    def cut(self) -> None:
        """Lose every packet between them from now on, without a word to anybody."""
        self._set_forwarding("0")

    def heal(self) -> None:
        """The opposite of `cut`."""
        self._set_forwarding("1")

    @contextmanager
    def dead_name_server(self) -> Iterator[None]:
        """Programs that start meanwhile ask a name server that never answers."""
        _ip("-n", self.router, "route", "add", "blackhole", f"{DEAD}/32")
        try:
            self._set_name_server(f"nameserver {DEAD}\n")
            yield
        finally:
            self._set_name_server("")
            _ip("-n", self.router, "route", "delete", "blackhole", f"{DEAD}/32")

    def _set_name_server(self, text: str) -> None:
        for host in (self.a, self.b):
            Path(ETC, host.name, "resolv.conf").write_text(text)

    def _set_forwarding(self, value: str) -> None:
        setting = "echo $0 > /proc/sys/net/ipv4/ip_forward"
        _ip("netns", "exec", self.router, "sh", "-c", setting, value)


@cache
def problem() -> str:
    """Why there can be no such hosts here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing"
    try:
        with two_hosts() as hosts:
            hosts.a.run(["getent", "hosts", hosts.b.name])
    except (RuntimeError, OSError) as error:
        return f"no network namespaces here: {error}"
    return ""


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts that are connected, with names that no other test has."""
    tag = uuid.uuid4().hex[:6]
    router = f"router-{tag}"
    a = Host(f"host-a-{tag}", "10.77.1.1", f"eth-a-{tag}")
    b = Host(f"host-b-{tag}", "10.77.2.1", f"eth-b-{tag}")
    try:
        _ip("netns", "add", router)
        for host, other in ((a, b), (b, a)):
            etc = ETC / host.name
            etc.mkdir(parents=True)
            Path(etc, "hosts").write_text(
                f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{other.ip} {other.name}\n"
            )
            Path(etc, "resolv.conf").write_text("")
            _connect(host, router)
        hosts = TwoHosts(a, b, router)
        hosts.heal()
        yield hosts
    finally:
        for name in (a.name, b.name, router):
            _remove(name)


def _connect(host: Host, router: str) -> None:
    gateway = host.ip.rpartition(".")[0] + ".254"
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "add", host.interface, "type", "veth",
        "peer", "name", host.interface, "netns", router)  # fmt: skip
    for namespace, ip in ((host.name, host.ip), (router, gateway)):
        _ip("-n", namespace, "address", "add", f"{ip}/24", "dev", host.interface)
        for interface in ("lo", host.interface):
            _ip("-n", namespace, "link", "set", interface, "up")
    _ip("-n", host.name, "route", "add", "default", "via", gateway)


def _remove(name: str) -> None:
    with suppress(RuntimeError):  # it was not made any more
        _kill_all(name)
        _ip("netns", "delete", name)
    shutil.rmtree(ETC / name, ignore_errors=True)
    with suppress(OSError):  # not empty: another test's, or the machine's own
        ETC.rmdir()


def _kill_all(name: str) -> None:
    deadline = time.monotonic() + 10
    while (pids := _pids(name)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _pids(name: str) -> list[int]:
    return [pid for pid in map(int, _ip("netns", "pids", name).split()) if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
