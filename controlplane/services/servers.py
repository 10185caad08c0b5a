"""The Triton servers as last observed, their cordons and drains."""

import asyncio

from controlplane.domain.cordons import Cordon
from controlplane.domain.states import ServerStatus
from controlplane.errors import NotFoundError
from controlplane.placement.views import DrainPlanView
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.cordons import CordonStore


class Servers:
    """Returns the state of the servers, and changes their cordons.

    Args:
        reconciler: The control loop.
        cordons: The cordons in the bucket.
    """

    def __init__(self, reconciler: Reconciler, cordons: CordonStore) -> None:
        self._reconciler = reconciler
        self._cordons = cordons

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

    async def cordon(self, name: str, *, drain: bool, force: bool, reason: str, actor: str) -> Cordon:
        """Cordon a server, or drain it. The same cordon again changes nothing.

        Args:
            name: The server.
            drain: Whether its replicas move to other servers.
            force: Whether replicas without another place are unloaded.
            reason: The reason.
            actor: Who asks for it.

        Raises:
            NotFoundError: No server has this name.
            ConflictError: Too many servers are cordoned.
            StoreError: The store failed.
        """
        self.get(name)
        number, cordons = await asyncio.to_thread(
            self._cordons.set, name, drain=drain, force=force, reason=reason, actor=actor
        )
        self._reconciler.cordons_changed(number, cordons)
        made = cordons.of(name)
        assert made is not None, "just set"
        return made

    async def uncordon(self, name: str, *, actor: str) -> None:
        """Remove the cordon of a server; also of one that is not there any more.

        Raises:
            NotFoundError: No server has this name, or it is not cordoned.
            StoreError: The store failed.
        """
        number, cordons = await asyncio.to_thread(self._cordons.clear, name, actor=actor)
        self._reconciler.cordons_changed(number, cordons)

    def drain_plan(self, name: str, *, force: bool) -> DrainPlanView:
        """Return what the drain of a server would do.

        Raises:
            NotFoundError: No server has this name.
        """
        self.get(name)
        return self._reconciler.plan_drain(name, force=force)
