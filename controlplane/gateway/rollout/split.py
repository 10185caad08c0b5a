"""Decides which of two versions answers a request during a rollout, and measures the answers.

HAProxy draws a sample of the requests (`domain.rollout.sampling`); requests outside the sample bypass this module and
go to the old version. There is one `TrafficSplit` for each model with a rollout. It is independent of the protocol: the
HTTP or gRPC proxy passes a function that sends a request to either version, and the split decides which version gets
the request, whose answer the client gets, and what is measured. The choice is random and independent for every request;
the statistical test relies on that (`domain.rollout.statistics`).
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from controlplane.domain.deployment import Rollout
from controlplane.domain.evidence import Evidence
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.sampling import PARTS, sample, weight
from controlplane.domain.tolerance import OutputComparison, Tolerance
from controlplane.gateway.rollout.comparison import Answer, Arm, SplitMeter

logger = logging.getLogger(__name__)

MIRRORED_AT_ONCE = 32
"""Maximum number of copies in flight for one model; more are skipped, so that they do not pile up if it is slow."""


class Reply(Protocol):
    """One version's answer, in the form of its protocol."""

    @property
    def failed(self) -> bool:
        """Whether it is an error, including errors that the client caused: those affect both versions equally."""
        ...

    @property
    def absent(self) -> bool:
        """Whether Triton did not know the model, so that nothing was executed and the other version can be used."""
        ...


R = TypeVar("R", bound=Reply)
Ask = Callable[[Arm], Awaitable[R]]
Compare = Callable[[R, R], tuple[OutputComparison, ...]]


@dataclass(frozen=True, slots=True)
class SplitResult(Generic[R]):
    """The result of a request.

    Attributes:
        reply: The reply to the client.
        arm: The version that gave it.
        way: The metrics label: canary, shadow or by-version; activator if the rollout did not affect the request.
    """

    reply: R
    arm: Arm
    way: str


class TrafficSplit:
    """The traffic of one model between an old and a new version. Belongs to one event loop.

    Args:
        model: The model.
        rollout: The rollout, with its old and new version.
        chance: Returns a random number from 0 to 1 for every request.
    """

    def __init__(self, model: str, rollout: Rollout, *, chance: Callable[[], float] = random.random) -> None:
        self.model = model
        self.rollout = rollout
        self.servers: tuple[str, ...] = ()
        self.meter = SplitMeter(rollout.strategy.latency_tolerance)
        self._chance = chance
        self._copies: set[asyncio.Task[None]] = set()

    @property
    def weight(self) -> float:
        """The share of all requests that the new version currently gets."""
        return rules.weight(self.rollout) if self.servers else 0.0

    @property
    def parts(self) -> int | None:
        """Measured requests per million; None if the new version gets no requests, not even those that name it."""
        return sample(self.rollout) if self.servers and self.rollout.step_since is not None else None

    def named(self, version: str) -> Arm | None:
        """Return which of the two a version in a request is; None if it is neither."""
        return {str(self.rollout.old_version): Arm.OLD, str(self.rollout.version): Arm.NEW}.get(version)

    def version(self, arm: Arm) -> str:
        """Return the version number of one of the two."""
        return str(self.rollout.version if arm is Arm.NEW else self.rollout.old_version)

    def server(self) -> str:
        """Return a random server that has the new version."""
        return self.servers[int(self._chance() * len(self.servers)) % len(self.servers)]

    def draw(self) -> tuple[Arm, float | None]:
        """Draw the version for a new sequence; also returns the new version's probability, None if it gets none."""
        weight = self.weight
        return (Arm.NEW if self._chance() < weight else Arm.OLD), weight or None

    async def answer(
        self, named: Arm | None, drawn: int | None, ask: Ask[R], compare: Compare[R], copied: Callable[[R], None]
    ) -> SplitResult[R]:
        """Send a request to one of the versions and return the result.

        Args:
            named: The version that the request names; None if it names none.
            drawn: The size of the sample that HAProxy drew it from, in requests per million. None if the request came
                to the activator for another reason (a key with a limit, a compressed message): the new version gets
                its share of those, too.
            ask: Sends the request to one version. Errors that it raises are not caused by the version and not measured.
            compare: Compares the old version's answer with the new one's.
            copied: Called with the new version's answer to a copy.
        """
        if named is not None:
            return await self._chosen(named, ask)
        parts = self.parts
        if not parts:
            return SplitResult(await ask(Arm.OLD), Arm.OLD, "activator")
        if rules.mirrors(self.rollout):
            if drawn or self._chance() * PARTS < parts:
                return await self._mirrored(ask, compare, copied)
            return SplitResult(await ask(Arm.OLD), Arm.OLD, "activator")
        chance = weight(self.rollout, drawn or PARTS)
        arm = Arm.NEW if self._chance() < chance else Arm.OLD
        began = time.perf_counter()
        try:
            reply, answer = await _timed(ask, arm)
        except asyncio.CancelledError:
            # The client stopped waiting. If this were not counted, a version that hangs would never be detected.
            self.meter.split(arm, Answer(failed=True, seconds=time.perf_counter() - began), chance)
            raise
        if arm is Arm.NEW and reply.absent:
            return await self._instead(ask, "canary")
        self.meter.split(arm, answer, chance)
        return SplitResult(reply, arm, "canary")

    async def close(self) -> None:
        """Cancel the copies in flight."""
        copies = list(self._copies)
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)

    async def _chosen(self, named: Arm, ask: Ask[R]) -> SplitResult[R]:
        arm = named if named is Arm.OLD or self.servers else Arm.OLD
        reply, answer = await _timed(ask, arm)
        if arm is Arm.NEW and reply.absent:
            return await self._instead(ask, "by-version")
        self.meter.chosen(arm, answer)
        return SplitResult(reply, arm, "by-version")

    async def _instead(self, ask: Ask[R], way: str) -> SplitResult[R]:
        """Send the request to the old version because the new one is unavailable; neither version is measured."""
        self.meter.refused()
        return SplitResult(await ask(Arm.OLD), Arm.OLD, way)

    async def _mirrored(self, ask: Ask[R], compare: Compare[R], copied: Callable[[R], None]) -> SplitResult[R]:
        reply, answer = await _timed(ask, Arm.OLD)
        if len(self._copies) >= MIRRORED_AT_ONCE:
            self.meter.skipped()
            return SplitResult(reply, Arm.OLD, "shadow")
        copy = asyncio.create_task(
            self._copy(ask, compare, copied, reply, answer), name=f"shadow request for {self.model}"
        )
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)
        return SplitResult(reply, Arm.OLD, "shadow")

    async def _copy(
        self, ask: Ask[R], compare: Compare[R], copied: Callable[[R], None], old_reply: R, old: Answer
    ) -> None:
        try:
            reply, answer = await _timed(ask, Arm.NEW)
            if reply.absent:
                self.meter.refused()
                return
            copied(reply)
            self.meter.mirrored(old, answer)
            if not old.failed and not answer.failed:
                compared = await asyncio.to_thread(compare, old_reply, reply)
                differs = any(not one.agrees for one in compared)
                self.meter.compared(
                    differs=differs, largest=max((one.max_absolute_error for one in compared), default=0.0)
                )
        except Exception:
            # Outermost handler of a background task: the client already has its answer.
            logger.exception("shadow request for %s failed", self.model)


class TrafficSplits:
    """All splits, by model. Belongs to one event loop."""

    def __init__(self) -> None:
        self._splits: dict[str, TrafficSplit] = {}
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Event that is set when the shares to draw change. Each change makes a new event: get it before you check."""
        return self._changed

    def get(self, model: str) -> TrafficSplit | None:
        """Return the split of a model; None if all its requests go to the active version."""
        return self._splits.get(model)

    def all(self) -> list[TrafficSplit]:
        """Return all splits."""
        return list(self._splits.values())

    @property
    def models(self) -> frozenset[str]:
        """The models with a rollout in progress."""
        return frozenset(self._splits)

    def parts(self) -> dict[str, int]:
        """Return how many requests per million HAProxy must draw, by model with a new version that gets requests."""
        found = {model: split.parts for model, split in self._splits.items()}
        return {model: parts for model, parts in found.items() if parts is not None}

    async def keep(self, model: str, rollout: Rollout, servers: tuple[str, ...]) -> TrafficSplit:
        """Update the state of a model's rollout, and return its split.

        Args:
            model: The model.
            rollout: The rollout.
            servers: Names of the servers on which both versions are proved.
        """
        before, split = self.parts(), self._splits.get(model)
        if split is not None and split.rollout.id != rollout.id:
            await self.drop(model)
            split = None
        if split is None:
            split = self._splits[model] = TrafficSplit(model, rollout)
        split.rollout, split.servers = rollout, servers
        if self.parts() != before:
            self._move()
        return split

    async def drop(self, model: str) -> None:
        """End the split of a model: from the next request on, the active version gets all requests."""
        split = self._splits.pop(model, None)
        if split is not None:
            self._move()
            await split.close()

    def _move(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def evidence(self, model: str, rollout_id: str) -> Evidence:
        """Return the measurements of this process for a rollout."""
        split = self._splits.get(model)
        return split.meter.evidence() if split is not None and split.rollout.id == rollout_id else Evidence()

    async def close(self) -> None:
        """End all splits."""
        for model in list(self._splits):
            await self.drop(model)


async def _timed(ask: Ask[R], arm: Arm) -> tuple[R, Answer]:
    began = time.perf_counter()
    reply = await ask(arm)
    return reply, Answer(reply.failed, time.perf_counter() - began)


def tolerances(rollout: Rollout, outputs: Iterable[str]) -> Mapping[str, Tolerance]:
    """Return the tolerances that the strategy sets, by output; empty if it sets none."""
    difference = rollout.strategy.difference
    return {} if difference is None else dict.fromkeys(outputs, difference)
