"""The Triton servers of this process. Servers may join and leave while it runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from controlplane.errors import ConflictError
from controlplane.servers.server import ManagedServer


class ServerSet(Sequence[ManagedServer]):
    """The servers in the order in which they joined. Belongs to the event loop; reading is possible from any thread.

    Args:
        servers: The servers at the start.

    Raises:
        ConflictError: Two servers have the same name.
    """

    def __init__(self, servers: Iterable[ManagedServer] = ()) -> None:
        self._servers: tuple[ManagedServer, ...] = ()
        self._followers: list[tuple[Callable[[ManagedServer], None], Callable[[ManagedServer], None]]] = []
        for server in servers:
            self.join(server)

    def follow(self, joined: Callable[[ManagedServer], None], left: Callable[[ManagedServer], None]) -> None:
        """Call these functions for each server that joins or leaves from now on."""
        self._followers.append((joined, left))

    def find(self, name: str) -> ManagedServer | None:
        """Return a server by its name; None if there is none."""
        return next((server for server in self._servers if server.name == name), None)

    def join(self, server: ManagedServer) -> None:
        """Add a server.

        Raises:
            ConflictError: A server of this name is there.
        """
        if self.find(server.name) is not None:
            raise ConflictError(f"two Triton servers have the name {server.name!r}", server=server.name)
        self._servers = (*self._servers, server)
        for joined, _ in self._followers:
            joined(server)

    def leave(self, name: str) -> ManagedServer | None:
        """Remove a server; return it, or None if there is none of this name."""
        server = self.find(name)
        if server is not None:
            self._servers = tuple(one for one in self._servers if one is not server)
            for _, left in self._followers:
                left(server)
        return server

    @overload
    def __getitem__(self, index: int) -> ManagedServer: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ManagedServer, ...]: ...

    def __getitem__(self, index: int | slice) -> ManagedServer | tuple[ManagedServer, ...]:
        return self._servers[index]

    def __iter__(self) -> Iterator[ManagedServer]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)
