"""Which servers this process may act on at this moment, and what it may still believe.

An embedded server belongs to the process that started it: no other process has its key for model control, its loopback
ports and its disk. So an instance whose servers are all its own always drives them, with or without the lease. Servers
that instances share are driven by the holder of the lease alone.

Either way nothing is done with what was read too long ago. A process that was stopped for longer than the lease, or
that could not reach the store for so long, does not act until it has reached the store and has read all deployments
once more: another instance may have led since.
"""

from collections.abc import Callable, Iterable

from controlplane.lifecycle.actions import Term
from controlplane.reconciler.leader_election import Lease
from controlplane.servers.server import ManagedServer


class Authority:
    """What the lease and the age of what was read allow. May be asked in any thread.

    Args:
        lease: The leader's lease.
        servers: The servers of this process.
        read_epoch: The lease's epoch in which all deployments were read last; None before the first time.
    """

    def __init__(self, lease: Lease, servers: Iterable[ManagedServer], *, read_epoch: Callable[[], int | None]) -> None:
        self._lease = lease
        self._read_epoch = read_epoch
        self._private = {server.name: server.private for server in servers}
        self.alone = bool(self._private) and all(self._private.values())
        """Whether all servers are this process's own."""

    @property
    def leads(self) -> bool:
        """Whether this process holds the leader's lease: it decides what is written to the bucket."""
        return self._lease.held

    @property
    def owns(self) -> bool:
        """Whether the servers are this process's to drive, whatever it knows of what they should run."""
        return self.alone or self._lease.held

    @property
    def informed(self) -> bool:
        """Whether the store answers, and all deployments were read since it last did not."""
        return self._lease.in_touch and self._read_epoch() == self._lease.epoch

    @property
    def acts(self) -> bool:
        """Whether this process may change what is on its servers."""
        return self.owns and self.informed

    @property
    def term(self) -> Term | None:
        """A value that changes when another instance may have acted or something was missed; None: no acting."""
        return (self.tenure, self._lease.epoch) if self.acts else None

    @property
    def tenure(self) -> int:
        """See `HeldModel.tenure`. No other instance ever drives a process's own servers."""
        return 1 if self.alone else self._lease.tenure

    def undriven(self, server: ManagedServer) -> str:
        """Say why no instance drives a server; empty where one does, or may in a moment."""
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
    """Return the addresses of the servers that a leader drives, by id, and by name where other instances reach them."""
    found: dict[str, str] = {}
    for server in servers:
        found[server.id] = server.client.grpc_url
        if not server.private:
            found[server.name] = server.client.grpc_url
    return found
