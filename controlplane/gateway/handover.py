"""The gateway's listening sockets: new ones, or those of an HAProxy that a killed control plane left running."""

import contextlib
import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from controlplane.errors import ConflictError
from controlplane.gateway.haproxy.launcher import HANDOVER
from controlplane.settings import GatewaySettings

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
"""Timeout of each socket call; the launcher detects the death of its control plane within 50 ms."""


_BACKLOG = 1024


class Predecessor:
    """An HAProxy of the previous control plane, which serves requests until `retire`.

    Attributes:
        listeners: Its listening sockets, in the order in which it received them.
    """

    def __init__(self, connection: socket.socket, listeners: Sequence[socket.socket]) -> None:
        self._connection = connection
        self.listeners = tuple(listeners)

    def retire(self) -> None:
        """Stop accepting connections, and end the predecessor after the requests in flight."""
        with contextlib.suppress(OSError):  # it has already ended
            self._connection.sendall(b"retire\n")
        self._connection.close()

    def replace(self) -> None:
        """End the predecessor because its addresses differ from the settings; wait until its sockets are closed."""
        for listener in self.listeners:
            listener.close()
        with contextlib.suppress(OSError):
            self._connection.sendall(b"retire\n")
            self._connection.recv(1)  # end of file once the launcher has ended
        self._connection.close()


def find_predecessor(folder: Path, count: int) -> Predecessor | None:
    """Return the HAProxy that runs in this folder without a control plane; None if there is none.

    Args:
        folder: The gateway's folder, as a path that is short enough for a socket.
        count: The number of listening sockets it must have.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_TIMEOUT_SECONDS)
    try:
        connection.connect(str(folder / HANDOVER))
        _, descriptors, _, _ = socket.recv_fds(connection, 16, count)
    except OSError:
        connection.close()
        return None
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    found = Predecessor(connection, listeners)
    if len(listeners) != count:
        found.replace()
        return None
    logger.info("taking over the sockets of the previous control plane's HAProxy")
    return found


def listen(settings: GatewaySettings, folder: Path) -> tuple[dict[str, socket.socket], Predecessor | None]:
    """Listen for HTTP, gRPC and metrics.

    Args:
        settings: The addresses.
        folder: The gateway's folder, as a path that is short enough for a socket.

    Returns:
        The sockets by name, and the predecessor that they come from, which must retire once the new HAProxy is ready.

    Raises:
        ConflictError: A port is in use.
    """
    wanted = (
        ("http", settings.host, settings.http_port),
        ("grpc", settings.host, settings.grpc_port),
        ("metrics", "127.0.0.1", 0),
    )
    if predecessor := find_predecessor(folder, len(wanted)):
        pairs = list(zip(wanted, predecessor.listeners, strict=True))
        if all(_listens(listener, host, port) for (_, host, port), listener in pairs):
            return {name: listener for (name, _, _), listener in pairs}, predecessor
        predecessor.replace()
    listeners: dict[str, socket.socket] = {}
    try:
        for name, host, port in wanted:
            listeners[name] = _listen(name, host, port)
    except ConflictError:
        for listener in listeners.values():
            listener.close()
        raise
    return listeners, None


def _listen(name: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConflictError(
            f"the gateway cannot listen on {host}:{port} for {name}: {error.strerror}; set another port "
            f"(--{name}-port; 0 selects a free one), or run without the gateway (--no-gateway)",
            host=host,
            port=port,
        ) from error


def _listens(listener: socket.socket, host: str, port: int) -> bool:
    """Return whether a socket listens on the configured address; port 0 matches any port."""
    there, bound = listener.getsockname()[:2]
    return there == host and port in {0, bound}
