"""Connections of the activator to the Triton servers, which may join and leave while it runs."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from controlplane.errors import ModelUnavailableError

T = TypeVar("T")


class Connections(Mapping[str, T]):
    """A connection for each server, opened when it is first used. Belongs to one event loop.

    Args:
        urls: The servers' addresses by name; the owner changes it.
        connect: Opens a connection to an address.
    """

    def __init__(self, urls: Mapping[str, str], connect: Callable[[str], T]) -> None:
        self._urls = urls
        self._connect = connect
        self._made: dict[str, tuple[str, T]] = {}

    def __getitem__(self, server: str) -> T:
        """Return the connection to a server.

        Raises:
            ModelUnavailableError: The server left after the request was assigned to it.
        """
        url = self._urls.get(server)
        if url is None:
            raise ModelUnavailableError(
                f"the Triton server {server} has just left; try again", server=server, retry_after_seconds=1
            )
        made = self._made.get(server)
        if made is None or made[0] != url:
            # Requests in flight keep the connections to servers that have left; the last of them closes it.
            self._made = {name: one for name, one in self._made.items() if name in self._urls}
            made = self._made[server] = (url, self._connect(url))
        return made[1]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._urls))

    def __len__(self) -> int:
        return len(self._urls)

    def opened(self) -> list[T]:
        """Return the connections that were opened."""
        return [one for _, one in self._made.values()]
