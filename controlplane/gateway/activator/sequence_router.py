"""Finds the server for a request of a sequence, and the version if the model has a rollout in progress.

The first request of a sequence decides; the others follow it (`gateway.sequences`). In a canary rollout the first
request is drawn as any other request is, and measured. The others depend on it, so they are only counted. A shadow
rollout copies no requests of sequences: a copy that is skipped would leave the new version with another state.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from controlplane.domain.names import candidate_name
from controlplane.gateway.rollout.comparison import Answer, Arm
from controlplane.gateway.rollout.split import TrafficSplit, TrafficSplits
from controlplane.gateway.routes import Routes
from controlplane.gateway.sequences import OpenSequence, Sequences, SequenceStep, place

_IDLE_SECONDS = 1.0
"""Triton's default, for a model whose configuration has changed meanwhile."""


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """Where a request of a sequence goes.

    Attributes:
        where: The sequence.
        version: The version to name in the request; empty if none is to be named.
        split: The rollout in progress; None without one.
        chance: The probability of the new version with which the request was drawn; None if it was not drawn.
    """

    where: OpenSequence
    version: str
    split: TrafficSplit | None = None
    chance: float | None = None

    @property
    def arm(self) -> Arm:
        """Which of the two versions of a rollout it goes to."""
        return Arm.NEW if self.where.candidate else Arm.OLD

    @property
    def way(self) -> str:
        """The label of the metrics."""
        if self.chance is not None:
            return "canary"
        return "by-version" if self.where.candidate else "activator"

    def refused(self) -> None:
        """Count that the active version answers in place of the new one."""
        if self.split is not None:
            self.split.meter.refused()

    def measured(self, *, failed: bool, seconds: float) -> None:
        """Count its answer for the rollout."""
        if self.split is None:
            return
        answer = Answer(failed, seconds)
        if self.chance is not None:
            self.split.meter.split(self.arm, answer, self.chance)
        else:
            self.split.meter.chosen(self.arm, answer)


class SequenceRouter:
    """Places the requests of sequences. For one event loop.

    Args:
        sequences: The open sequences.
        routes: The open routes.
        splits: The models with a rollout in progress.
        wait: Waits until a model has a route, given the model and the bytes of the request.
        takes: Returns whether a model has sequence batching.
    """

    def __init__(
        self,
        sequences: Sequences,
        routes: Routes,
        splits: TrafficSplits,
        wait: Callable[[str, int], Awaitable[str]],
        takes: Callable[[str], bool],
    ) -> None:
        self.sequences = sequences
        self.takes = takes
        self._routes = routes
        self._splits = splits
        self._wait = wait

    @asynccontextmanager
    async def acquire(
        self, model: str, size: int, step: SequenceStep, version: str, *, may_draw: bool
    ) -> AsyncIterator[PlacedStep]:
        """Wait until a request of a sequence has a server, and count it while the context is open.

        Args:
            model: The model.
            size: Bytes of the request that are kept in memory while it waits.
            step: What the request says about its sequence.
            version: The version that it names; empty if it names none.
            may_draw: Whether a rollout's new version may get the sequence.

        Raises:
            ControlPlaneError: See `Activator.acquire`.
        """
        placed = self._open(model, step, version)
        if placed is None:
            placed = await self._place(model, size, step, version, self._splits.get(model) if may_draw else None)
        where = placed.where
        with self._routes.used(where.server, where.triton_name), self.sequences.used(where, step):
            yield placed

    async def _place(
        self, model: str, size: int, step: SequenceStep, version: str, split: TrafficSplit | None
    ) -> PlacedStep:
        """Choose the server for the first request of a sequence, or for one of an unknown sequence."""
        chance = None
        if split is not None:
            named = split.named(version) if version else None
            arm, chance = (named, None) if version else split.draw()
            if arm is Arm.NEW and (placed := self._on_new_version(model, step, split, chance)):
                return placed
            if arm is Arm.NEW:
                version, chance = "", None  # the new version is not loaded: the active one answers
        while (server := self._routes.choose(model, lambda servers: place(servers, model, step.id))) is None:
            await self._wait(model, size)
        route = self._routes.open[model]
        where = self.sequences.begin(
            model, step, server, version or str(route.version or ""), route.sequence_idle_seconds or _IDLE_SECONDS
        )
        return PlacedStep(where, version, split, chance)

    def _open(self, model: str, step: SequenceStep, version: str) -> PlacedStep | None:
        """Return where an open sequence runs; None if it has to be placed."""
        where = self.sequences.find(model, step)
        if where is None:
            return None
        route = self._routes.open.get(model)
        gone = not where.candidate and (route is None or where.server not in route.servers)
        if step.start and (gone or self._routes.withdrawn(where.server, where.triton_name)):
            return None  # it begins again, and its server is being drained
        split = self._splits.get(model)
        if where.candidate:
            ours = split is not None and split.version(Arm.NEW) == where.version
            return PlacedStep(where, "", split if ours else None)
        changed = route is None or str(route.version or "") != where.version
        return PlacedStep(where, version or (where.version if changed else ""), split)

    def _on_new_version(
        self, model: str, step: SequenceStep, split: TrafficSplit, chance: float | None
    ) -> PlacedStep | None:
        """Return a place on a rollout's new version; None if no server may get new sequences for it."""
        name = candidate_name(model)
        servers = [server for server in split.servers if not self._routes.withdrawn(server, name)]
        if not servers:
            return None
        route = self._routes.open.get(model)
        idle = (route.sequence_idle_seconds if route is not None else None) or _IDLE_SECONDS
        server = place(servers, model, step.id)
        where = self.sequences.begin(model, step, server, split.version(Arm.NEW), idle, candidate=True)
        return PlacedStep(where, "", split, chance)
