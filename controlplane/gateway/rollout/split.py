"""Which of two versions answers a request while a rollout is under way, and what is learnt from it.

HAProxy draws a sample of the requests (`domain.sampling`), and what is not in it goes past us to the old version. One
`TrafficSplit` for each model with a rollout. It knows no protocol: a face (HTTP, gRPC) gives it a way to ask either
version, and it decides who is asked, whose answer the client gets, and what is measured. The choice is made by chance
for every request anew, with nothing else to it: the test relies on that (`domain.sequential`).
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
"""Copies under way for one model; further ones are skipped, so that a slow new version does not pile them up."""


class Reply(Protocol):
    """One version's answer, in a protocol's own form."""

    @property
    def failed(self) -> bool:
        """Whether it is an error. Also one that is the client's fault: those meet both versions alike."""
        ...

    @property
    def absent(self) -> bool:
        """Whether Triton did not know the model, so that nothing was done and another may be asked."""
        ...


R = TypeVar("R", bound=Reply)
Ask = Callable[[Arm], Awaitable[R]]
Compare = Callable[[R, R], tuple[OutputComparison, ...]]


@dataclass(frozen=True, slots=True)
class SplitResult(Generic[R]):
    """What came of a request.

    Attributes:
        reply: What the client gets.
        arm: Who gave it.
        way: How it went, for the metrics: canary, shadow, pinned; activated where a rollout had no part in it.
    """

    reply: R
    arm: Arm
    way: str


class TrafficSplit:
    """The traffic of one model between an old and a new version. Belongs to one event loop.

    Args:
        model: The model.
        rollout: What is tried, and beside which version.
        chance: Gives a number from 0 to 1 for every request.
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
        """The share of all requests that the new version gets now."""
        return rules.weight(self.rollout) if self.servers else 0.0

    @property
    def parts(self) -> int | None:
        """How many of a million requests are to be measured; None where not even who names the new version gets it."""
        return sample(self.rollout) if self.servers and self.rollout.step_since is not None else None

    def named(self, version: str) -> Arm | None:
        """Return whom a version in a request means; None where it means neither."""
        return {str(self.rollout.old_version): Arm.OLD, str(self.rollout.version): Arm.NEW}.get(version)

    def version(self, arm: Arm) -> str:
        """Return the version that one of the two is."""
        return str(self.rollout.version if arm is Arm.NEW else self.rollout.old_version)

    def server(self) -> str:
        """Return a server to ask the new version on."""
        return self.servers[int(self._chance() * len(self.servers)) % len(self.servers)]

    async def answer(
        self, named: Arm | None, drawn: int | None, ask: Ask[R], compare: Compare[R], copied: Callable[[R], None]
    ) -> SplitResult[R]:
        """Have a request answered.

        Args:
            named: Whom the request names; None where it does not care.
            drawn: From a sample of how many of a million requests it is. None of what came to us for another reason (a
                key with a limit, a compressed message): of those, too, the new version gets its share.
            ask: Asks one of the two. What it raises is not the version's fault, and is not measured.
            compare: Compares the old version's answer with the new one's.
            copied: Told the new version's answer to a copy.
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
            # The client did not wait any longer. Left out, a version that hangs would never be found out.
            self.meter.split(arm, Answer(failed=True, seconds=time.perf_counter() - began), chance)
            raise
        if arm is Arm.NEW and reply.absent:
            return await self._instead(ask, "canary")
        self.meter.split(arm, answer, chance)
        return SplitResult(reply, arm, "canary")

    async def close(self) -> None:
        """Give up the copies that are under way."""
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
        """The new version was not there: the old one answers, and that says nothing about either."""
        self.meter.refused()
        return SplitResult(await ask(Arm.OLD), Arm.OLD, way)

    async def _mirrored(self, ask: Ask[R], compare: Compare[R], copied: Callable[[R], None]) -> SplitResult[R]:
        reply, answer = await _timed(ask, Arm.OLD)
        if len(self._copies) >= MIRRORED_AT_ONCE:
            self.meter.skipped()
            return SplitResult(reply, Arm.OLD, "shadow")
        copy = asyncio.create_task(self._copy(ask, compare, copied, reply, answer), name=f"copy for {self.model}")
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
            # The edge of a task that nobody waits for: the client has its answer.
            logger.exception("a copy of a request for %s came to nothing", self.model)


class TrafficSplits:
    """All splits, by model. Belongs to one event loop."""

    def __init__(self) -> None:
        self._splits: dict[str, TrafficSplit] = {}
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Is set when other shares are to be drawn. A new event each time: take it before looking."""
        return self._changed

    def get(self, model: str) -> TrafficSplit | None:
        """Return the split of a model; None where all its requests go to the version that answers."""
        return self._splits.get(model)

    def all(self) -> list[TrafficSplit]:
        """Return all of them."""
        return list(self._splits.values())

    @property
    def models(self) -> frozenset[str]:
        """The models with a rollout under way."""
        return frozenset(self._splits)

    def parts(self) -> dict[str, int]:
        """Return how many of a million requests HAProxy has to draw, by model of which a new version can be asked."""
        found = {model: split.parts for model, split in self._splits.items()}
        return {model: parts for model, parts in found.items() if parts is not None}

    async def keep(self, model: str, rollout: Rollout, servers: tuple[str, ...]) -> TrafficSplit:
        """Take in how a rollout stands.

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
        """A rollout is over: from the next request on the version that answers gets everything."""
        split = self._splits.pop(model, None)
        if split is not None:
            self._move()
            await split.close()

    def _move(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def evidence(self, model: str, rollout_id: str) -> Evidence:
        """Return what was measured here for a rollout."""
        split = self._splits.get(model)
        return split.meter.evidence() if split is not None and split.rollout.id == rollout_id else Evidence()

    async def close(self) -> None:
        """Drop all."""
        for model in list(self._splits):
            await self.drop(model)


async def _timed(ask: Ask[R], arm: Arm) -> tuple[R, Answer]:
    began = time.perf_counter()
    reply = await ask(arm)
    return reply, Answer(reply.failed, time.perf_counter() - began)


def tolerances(rollout: Rollout, outputs: Iterable[str]) -> Mapping[str, Tolerance]:
    """Return what counts as no difference, by output, where the strategy says so."""
    difference = rollout.strategy.difference
    return {} if difference is None else dict.fromkeys(outputs, difference)
