"""The Triton servers in HAProxy's configuration. It cannot get further servers while it runs, so it has spare ones.

A spare is a server without an address, out of service. A Triton that joins takes one: its address is set through the
runtime API, and no reload is needed. A Triton for which no spare is left is reached through the activator, until
HAProxy starts again with more spares.
"""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from controlplane.errors import InvalidInputError
from controlplane.servers.server import ManagedServer

_NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Backend:
    """A Triton server as HAProxy knows it.

    Attributes:
        key: Its name in the configuration.
        http: host:port of its HTTP service.
        grpc: host:port of its gRPC service.
        spare: Whether no Triton has it.
    """

    key: str
    http: str
    grpc: str
    spare: bool = False

    @classmethod
    def of(cls, number: int, name: str, http_url: str, grpc_url: str) -> "Backend":
        """Return the backend for a server's addresses.

        Raises:
            InvalidInputError: The HTTP address is missing or not of the form ``http://host:port``.
        """
        parts = urlsplit(http_url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise InvalidInputError(
                f"the gateway needs the HTTP address of Triton server {name!r} as http://host:port, not "
                f"{http_url!r}; give it, or turn the gateway off (gateway.enabled)",
                server=name,
            )
        return cls(f"s{number}", parts.netloc, grpc_url)


class Backends:
    """The servers in the configuration, and which Triton has which. Belongs to the event loop.

    Args:
        servers: The Triton servers at the start.
        spare: How many spares there are at least when HAProxy starts.

    Attributes:
        all: The servers, spares included.
        keys: The names in the configuration, by the name of the Triton.

    Raises:
        InvalidInputError: A server has no HTTP address.
    """

    def __init__(self, servers: Iterable[ManagedServer], *, spare: int) -> None:
        self._spare = spare
        self.all: list[Backend] = []
        self.keys: dict[str, str] = {}
        self._waiting: dict[str, Backend] = {}
        self._changed: dict[str, None] = {}
        for number, one in enumerate(servers):
            self.all.append(Backend.of(number, one.name, one.http_url, one.client.grpc_url))
            self.keys[one.name] = f"s{number}"
        self._add_spares()

    def join(self, server: ManagedServer) -> bool:
        """Give a Triton a spare; return whether there was one.

        Raises:
            InvalidInputError: The server has no HTTP address.
        """
        made = Backend.of(0, server.name, server.http_url, server.client.grpc_url)
        free = next((one for one in self.all if one.spare), None)
        if free is None:
            self._waiting[server.name] = made
            return False
        self._set(replace(made, key=free.key))
        self.keys[server.name] = free.key
        return True

    def leave(self, name: str) -> None:
        """Make the server of a Triton a spare."""
        self._waiting.pop(name, None)
        key = self.keys.pop(name, None)
        if key is not None:
            self._set(Backend(key, _NOWHERE, _NOWHERE, spare=True))

    def refuse(self, backend: Backend) -> None:
        """Make a server a spare again whose address cannot be used."""
        for name in [name for name, key in self.keys.items() if key == backend.key]:
            self.leave(name)
        self._changed.pop(backend.key, None)

    def grow(self) -> bool:
        """Add spares before HAProxy starts, if too few are left; return whether the list has grown."""
        self._changed.clear()
        before = len(self.all)
        self._add_spares(len(self._waiting))
        for name, made in list(self._waiting.items()):
            free = next(one for one in self.all if one.spare)
            self._set(replace(made, key=free.key))
            self.keys[name] = free.key
        self._waiting.clear()
        self._changed.clear()
        return len(self.all) > before

    def take_changed(self) -> list[Backend]:
        """Return the servers whose address or state changed since HAProxy started or the last call."""
        changed, self._changed = self._changed, {}
        return [one for one in self.all if one.key in changed]

    def change_again(self, backends: Iterable[Backend]) -> None:
        """Return servers to `take_changed`, because HAProxy did not take the change."""
        self._changed |= dict.fromkeys(one.key for one in backends)

    def _set(self, made: Backend) -> None:
        self.all = [made if one.key == made.key else one for one in self.all]
        self._changed[made.key] = None

    def _add_spares(self, more: int = 0) -> None:
        free = sum(one.spare for one in self.all)
        for _ in range(self._spare + more - free):
            self.all.append(Backend(f"s{len(self.all)}", _NOWHERE, _NOWHERE, spare=True))


async def resolved(address: str) -> tuple[str, str]:
    """Return the IP address and the port of ``host:port``: HAProxy's runtime API takes no host names.

    Raises:
        InvalidInputError: The host name is unknown.
    """
    host, _, port = address.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInputError(f"the host name {host!r} is unknown here: {error.strerror or error}") from error
    return str(found[0][4][0]), port
