"""Several hosts on one machine: network namespaces, each joined to this one by a wire of its own. Needs root."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.agents import Agent

_CHUNK = 65536


def missing() -> str:
    """Return why there can be no hosts; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is not installed (package iproute2)"
    probe = f"tctprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"network namespaces cannot be made here: {made.stderr.strip()}"


@dataclass
class Host:
    """One host.

    Attributes:
        namespace: Its network namespace.
        wire: This machine's end of its wire.
        address: Its address.
        gateway: The address of this machine for it.
    """

    namespace: str
    wire: str
    address: str
    gateway: str

    def cut(self) -> None:
        """Cut the wire: nothing arrives, and nothing is refused either."""
        _ip("link", "set", self.wire, "down")

    def restore(self) -> None:
        """Let the wire carry again."""
        _ip("link", "set", self.wire, "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts, numbered from 1."""
    number = os.getpid() % 200
    made = []
    try:
        for index in range(1, count + 1):
            host = Host(
                f"tct{os.getpid()}-{index}", f"tct{os.getpid() % 100_000}n{index}",
                f"10.{number + 20}.{index}.2", f"10.{number + 20}.{index}.1",
            )  # fmt: skip
            made.append(host)
            inner = f"{host.wire}i"
            _ip("netns", "add", host.namespace)
            _ip("link", "add", host.wire, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", host.namespace)
            _ip("addr", "add", f"{host.gateway}/24", "dev", host.wire)
            _ip("link", "set", host.wire, "up")
            for command in (
                ("addr", "add", f"{host.address}/24", "dev", inner),
                ("link", "set", inner, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", host.namespace, *command)
        yield made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", host.wire], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class HostAgent(Agent):
    """An agent on a host."""

    host: Host | None = None

    @property
    def url(self) -> str:
        """Its address."""
        assert self.host is not None
        return f"http://{self.host.address}:{self.port}"

    def command(self, *more: str) -> list[str]:
        """Return its command line in the host's namespace."""
        assert self.host is not None
        return ["ip", "netns", "exec", self.host.namespace, *super().command(f"--host={self.host.address}", *more)]


@dataclass
class Way:
    """The way of one client to a server on this machine; it can be closed.

    Attributes:
        url: What the client connects to.
    """

    url: str
    _open: bool = True
    _sockets: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._lock:
            self._open = False
            broken, self._sockets = self._sockets, set()
        _close(*broken)

    def open(self) -> None:
        """Let connections pass again."""
        self._open = True

    def admit(self, *pair: socket.socket) -> bool:
        """Add a connection; return whether it may pass."""
        with self._lock:
            if self._open:
                self._sockets.update(pair)
            return self._open


@contextlib.contextmanager
def way_to(port: int, address: str) -> Iterator[Way]:
    """Listen on an address of this machine, and pass connections on to a port of its loopback."""
    listener = socket.create_server((address, 0))
    way = Way(f"http://{address}:{listener.getsockname()[1]}")

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                target.sendall(data)
        _close(source, target)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    _close(client)
                    continue
                if not way.admit(client, server):
                    _close(client, server)
                    continue
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield way
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        way.close()
        thread.join(5)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
