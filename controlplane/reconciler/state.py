"""What the loop knows: the servers, and what is wanted of them. Mutable; changed by the loop's own task alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.memory.placement.scaling import Scale
from controlplane.memory.placement.types import NO_PLAN, Plan
from controlplane.reconciler.events import EventLog
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.wishes import Wish


@dataclass
class LoopState:
    """What the loop knows.

    Attributes:
        servers: By name.
        events: What is told.
        clock: Gives the time (UTC).
        wishes: The newest revision of each deployment, by model.
        step: Grows by one with every message.
        plan: Who is placed where.
        scales: How many copies there are, and since when, by model.
        read_epoch: The lease's epoch in which all deployments were read last; None before the first time.
    """

    servers: dict[str, KnownServer]
    events: EventLog
    clock: Callable[[], datetime]
    wishes: dict[str, Wish] = field(default_factory=dict)
    step: int = 0
    plan: Plan = NO_PLAN
    scales: dict[str, Scale] = field(default_factory=dict)
    read_epoch: int | None = None

    def judge(self, server: KnownServer) -> list[str]:
        """Ask the steward which models shall be loaded; return those for which that changed."""
        pairs = [(wish, server.unit(model)) for model, wish in self.wishes.items() if server.has_place(model)]
        return server.steward.judge(pairs, self.clock())
