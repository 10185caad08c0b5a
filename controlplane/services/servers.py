"""The Triton servers as last observed."""

from controlplane.domain.states import ServerStatus
from controlplane.errors import NotFoundError
from controlplane.reconciler.controller import Reconciler


class Servers:
    """Returns the state of the servers."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def all(self) -> tuple[ServerStatus, ...]:
        """Return the servers."""
        return self._reconciler.servers()

    def get(self, name: str) -> ServerStatus:
        """Return one server.

        Raises:
            NotFoundError: No server has this name.
        """
        for server in self._reconciler.servers():
            if server.name == name:
                return server
        have = ", ".join(server.name for server in self._reconciler.servers()) or "none"
        raise NotFoundError(f"unknown server {name[:80]!r}; the servers are: {have}", server=name[:80])
