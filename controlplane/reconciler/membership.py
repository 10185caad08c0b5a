"""Servers that join and leave while the loop runs. Belongs to the loop.

A server that joins gets models by placement like any other. One that leaves is forgotten at once, so the models that
were placed on it are placed elsewhere in the same cycle; what still runs for it ends without an effect.
"""

from collections.abc import Callable

from controlplane.reconciler.authority import Authority
from controlplane.reconciler.cordons import CordonKeeper
from controlplane.reconciler.external_changes import ExternalChangeDetector
from controlplane.reconciler.freshness import Freshness
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.placement import PlacementController
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner
from controlplane.servers.server import ManagedServer


class Membership:
    """Adds servers to the loop's state, and removes them.

    Args:
        state: The loop's state.
        track: Returns the state of a new server.
        background: Observes servers.
        authority: Permissions of this process.
        freshness: Determines whether an instance drives a server.
        placer: Placement.
        cordons: The cordons.
        external_changes: Detects changes by other clients.
    """

    def __init__(
        self,
        state: LoopState,
        track: Callable[[ManagedServer], TrackedServer],
        background: TaskRunner,
        authority: Authority,
        freshness: Freshness,
        placer: PlacementController,
        cordons: CordonKeeper,
        external_changes: ExternalChangeDetector,
    ) -> None:
        self._state = state
        self._track = track
        self._background = background
        self._authority = authority
        self._freshness = freshness
        self._placer = placer
        self._cordons = cordons
        self._external_changes = external_changes

    def joined(self, managed: ManagedServer) -> None:
        """Add a server, and mark all models: any of them may be placed on it."""
        server = self._track(managed)
        self._state.servers[managed.name] = server
        self._authority.changed(one.managed for one in self._state.servers.values())
        self._state.events.add("Normal", "ServerJoined", managed.name, f"Triton at {managed.client.grpc_url}")
        self._cordons.joined(server)
        self._freshness.check_driven()
        self._background.clean(server)
        self._background.look(server)
        self._background.gauge(server)
        self._state.moved.add(server.name)
        self._state.touch(self._state.desired_state.keys())

    def leaving(self, name: str) -> None:
        """Move the models of a server that is about to leave."""
        server = self._state.servers.get(name)
        if server is not None and not server.leaving:
            server.leaving = True
            self._state.events.add("Normal", "ServerLeaving", name, "its models move to other servers")
            self._state.moved.add(name)

    def left(self, name: str) -> None:
        """Remove a server, and mark all models: those on it are placed elsewhere."""
        server = self._state.servers.pop(name, None)
        if server is None:
            return
        self._authority.changed(one.managed for one in self._state.servers.values())
        if server.later is not None:
            server.later.cancel()
        for task in (server.looking, server.gauging, server.cleaning):
            if task is not None:
                task.cancel()
        self._placer.forget(name)
        self._external_changes.forget(name)
        self._state.moved.discard(name)
        self._state.events.add("Normal", "ServerLeft", name, "its models are placed on other servers")
        self._state.touch(self._state.desired_state.keys())
