"""Decides which servers this process may act on now, and whether its knowledge is current.

An embedded server belongs to the process that started it: no other process has its model-control key, its loopback
ports and its disk. So an instance that has only its own servers always drives them, with or without the lease. Shared
servers are driven only by the holder of the lease.

In both cases the process does not act on outdated data. After it was stopped for longer than the lease, or could not
reach the store for that long, it acts only when it has reached the store and has read all deployments again, because
another instance may have led in the meantime.
"""

from collections.abc import Callable, Iterable

from controlplane.lifecycle.actions import Term
from controlplane.reconciler.leader_election import Lease
from controlplane.servers.server import ManagedServer


class Authority:
    """Permissions that follow from the lease and the age of the data. Thread-safe.

    Args:
        lease: The leader's lease.
        servers: The servers of this process.
        read_epoch: Gives the lease's epoch in which all deployments were last read; None before the first read.
    """

    def __init__(self, lease: Lease, servers: Iterable[ManagedServer], *, read_epoch: Callable[[], int | None]) -> None:
        self._lease = lease
        self._read_epoch = read_epoch
        self.alone = False
        """Whether all servers belong to this process alone."""
        self.changed(servers)

    def changed(self, servers: Iterable[ManagedServer]) -> None:
        """Apply a new list of the servers of this process."""
        known = list(servers)
        self.alone = bool(known) and all(server.private for server in known)
        self._lease.drives(driven_servers(known))

    @property
    def leads(self) -> bool:
        """Whether this process holds the leader's lease, and therefore writes the shared state in the bucket."""
        return self._lease.held

    @property
    def owns(self) -> bool:
        """Whether this process drives the servers, regardless of whether its data is current."""
        return self.alone or self._lease.held

    @property
    def informed(self) -> bool:
        """Whether the store answers and all deployments were read since the last time it did not."""
        return self._lease.in_touch and self._read_epoch() == self._lease.epoch

    @property
    def acts(self) -> bool:
        """Whether this process may change its servers."""
        return self.owns and self.informed

    @property
    def term(self) -> Term | None:
        """A value that changes if another instance may have acted or updates were missed; None if acting is denied."""
        return (self.tenure, self._lease.epoch) if self.acts else None

    @property
    def tenure(self) -> int:
        """See `HeldModel.tenure`. Constant if all servers are this process's own: no other instance drives them."""
        return 1 if self.alone else self._lease.tenure

    def undriven(self, server: ManagedServer) -> str:
        """Return why no instance drives a server; empty if one does, or may in a moment."""
        driven = self._lease.driven
        if self.owns or driven is None:
            return ""
        leader = self._lease.leader
        if server.embedded is not None:
            return (
                ""
                if server.id in driven
                else f"{leader} leads, and this instance drives its own {server.id} only while it leads, because other "
                "instances may drive its servers too: remove `triton.servers`, and leave `triton.restrict_control` on"
            )
        if server.name not in driven:
            return (
                f"{leader} leads and has no server {server.name!r} in its settings, so no instance drives it: add "
                "it to `triton.servers` there, or remove it here"
            )
        return ""


def driven_servers(servers: Iterable[ManagedServer]) -> dict[str, str]:
    """Return the addresses of the servers that a leader drives, by id, and by name if other instances reach them."""
    found: dict[str, str] = {}
    for server in servers:
        found[server.id] = server.client.grpc_url
        if not server.private:
            found[server.name] = server.client.grpc_url
    return found
