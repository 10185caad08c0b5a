"""Cordons in the loop: read from the bucket, applied to the servers, and reported. Belongs to the event loop.

Placement does the rest: it places no replica on a cordoned server, and moves the replicas of one that is drained.
"""

import asyncio
from collections.abc import Callable, Set

from controlplane.domain.cordons import Cordon, Cordons, CordonStatus
from controlplane.errors import ControlPlaneError, NotFoundError, StoreUnavailableError
from controlplane.placement.drain import DrainPlan, drain_plan
from controlplane.placement.types import Hints, Plan
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import CordonsRead, Message
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.cordons import CordonStore


class CordonKeeper:
    """Keeps `TrackedServer.cordon`, and answers what a drain does.

    Args:
        state: The loop's state.
        store: The cordons in the bucket.
        post: Sends a message to the loop.
        hints: Where models are loaded and cached.
        max_age_seconds: Maximum age of what is read.
    """

    def __init__(
        self,
        state: LoopState,
        store: CordonStore,
        *,
        post: Callable[[Message], None],
        hints: Callable[[Set[str]], Hints],
        max_age_seconds: float,
    ) -> None:
        self._state = state
        self._store = store
        self._post = post
        self._hints = hints
        self._max_age = max_age_seconds
        self._task: asyncio.Task[None] | None = None
        self._number = -1
        self._cordons = Cordons()
        self._unreadable = ""
        self._stuck: tuple[Plan, dict[str, dict[str, str]]] | None = None

    def read(self) -> None:
        """Start to read the cordons, unless a read is in progress."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="read cordons")

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        try:
            number, cordons = await asyncio.to_thread(self._store.read, max_age_seconds=self._max_age)
        except StoreUnavailableError:
            pass  # the deployments' event gives the reason; the next read follows
        except ControlPlaneError as error:
            self._post(CordonsRead(0, None, error.message))
        else:
            self._post(CordonsRead(number, cordons))
        finally:
            self._task = None

    def apply(self, read: CordonsRead) -> None:
        """Apply cordons to the servers, and mark those that changed.

        If the cordons cannot be read, the known ones stay valid: no fault of one chain may stop placement.
        """
        if read.why != self._unreadable:
            self._unreadable = read.why
            if read.why:
                self._state.events.add("Warning", "CordonsUnreadable", "cordons", f"{read.why}; the known ones stay")
            else:
                self._state.events.add("Normal", "CordonsReadable", "cordons", "they can be read again")
        if not self._state.cordons_known:
            self._state.cordons_known = True
            self._state.moved.update(self._state.servers)
        if read.cordons is None or read.number < self._number:
            return
        self._number, self._cordons = read.number, read.cordons
        for name, server in self._state.servers.items():
            if server.cordon != (made := read.cordons.of(name)):
                self._change(server, made)

    def joined(self, server: TrackedServer) -> None:
        """Apply the cordon of a server that joined."""
        if (cordon := self._cordons.of(server.name)) is not None:
            self._change(server, cordon)

    def _change(self, server: TrackedServer, cordon: Cordon | None) -> None:
        server.cordon, server.vacated = cordon, False
        self._state.moved.add(server.name)
        events = self._state.events
        if cordon is None:
            events.add("Normal", "Uncordoned", server.name, "the server takes new replicas again")
            return
        reason = f": {cordon.reason}" if cordon.reason else ""
        if cordon.drain:
            what = "its replicas move to other servers"
            events.add("Normal", "Draining", server.name, f"{what}, by decision of {cordon.by}{reason}")
        else:
            what = "the server takes no new replicas"
            events.add("Normal", "Cordoned", server.name, f"{what}, by decision of {cordon.by}{reason}")

    def look(self) -> None:
        """Report drains that are complete."""
        for server in self._state.servers.values():
            if server.cordon is None or not server.cordon.drain or server.name not in self._state.plan.servers:
                continue
            applied = bool(self._state.plan.servers[server.name].drained)
            done = applied and not self._remaining(server)
            if done and not server.vacated:
                self._state.events.add("Normal", "Drained", server.name, "no model is left on the server")
            server.vacated = done

    def status(self, server: TrackedServer) -> CordonStatus | None:
        """Return the cordon of a server as callers see it; None if it is not cordoned."""
        cordon = server.cordon
        if cordon is None:
            return None
        remaining = self._remaining(server) if cordon.drain else ()
        return CordonStatus(
            drain=cordon.drain,
            force=cordon.force,
            reason=cordon.reason,
            at=cordon.at,
            by=cordon.by,
            remaining=remaining,
            stuck={model: why for model, why in self._stuck_on(server).items() if model in remaining},
        )

    def plan(self, server: str, *, force: bool) -> DrainPlan:
        """Return what the drain of a server would do. Changes nothing.

        Raises:
            NotFoundError: No server has this name, or none is placed yet.
        """
        made = self._state.plan
        if server not in made.servers:
            raise NotFoundError(f"nothing is known of the server {server[:80]!r} yet; try again later", server=server)
        known = self._state.servers[server].cordon
        why = known.sentence if known is not None and known.drain else "it is being drained"
        return drain_plan(made, server, why, force=force, hints=self._hints(made.assignments.keys()))

    def _remaining(self, server: TrackedServer) -> tuple[str, ...]:
        """Return the models that are assigned to a server, loaded on it, or have an action in flight there."""
        usage = self._state.plan.server_usage.get(server.name)
        found = set(usage.models) if usage else set()
        for model in server.present:
            unit = server.units[model]
            facts = unit.facts
            on_it = facts is not None and (
                facts.loaded or facts.leaving or facts.candidate is not None or facts.loading
            )
            if on_it or unit.task is not None:
                found.add(model)
        return tuple(sorted(found))

    def _stuck_on(self, server: TrackedServer) -> dict[str, str]:
        """Return why replicas that are still assigned to a server that is drained do not move, by model."""
        made = self._state.plan
        placed = made.servers.get(server.name)
        if placed is None or not placed.drained or server.name not in made.server_usage:
            return {}
        if self._stuck is None or self._stuck[0] is not made:
            self._stuck = (made, {})
        kept = self._stuck[1]
        if server.name not in kept:
            kept[server.name] = dict(drain_plan(made, server.name, placed.drained, force=False).stays)
        return kept[server.name]
