"""Drains and restarts a server with much more memory in use than is accounted for. Mutable; belongs to the loop.

The decisions are in `controlplane.memory.policy.leaks`. While a server is drained no load begins on it, and requests
for its models wait: its models are loaded again after the restart, and then the requests are served.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime

from controlplane.domain.units import size_text
from controlplane.lifecycle.events import EventLog
from controlplane.memory.policy.leaks import LeakDecision, LeakRules, LeakStep, ServerExcess, decide_leak, over
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.memory.views import LeakView
from controlplane.settings import MemorySettings

logger = logging.getLogger(__name__)

_GREW = 1.1
"""A reported leak is reported again after it has grown by this factor."""


class LeakRestarter:
    """Watches one server.

    Args:
        scheduler: The server's memory scheduler.
        supervised: Whether this process can restart the server.

    Attributes:
        draining_since: Start of the drain; None if the server is not drained.
        restarts: How often this process restarted the server because of a leak.
    """

    def __init__(self, scheduler: MemoryScheduler, *, supervised: bool) -> None:
        self._scheduler = scheduler
        self._supervised = supervised
        self._rules = rules_of(scheduler.settings)
        self.draining_since: datetime | None = None
        self.restarts = 0
        self._restarting = False
        self._closed_since: datetime | None = None
        self._over_since: datetime | None = None
        self._restarted_at: datetime | None = None
        self._held: frozenset[str] = frozenset()
        self._before: dict[str, int] = {}
        self._told = 0
        self._last = LeakDecision(LeakStep.NOTHING)

    @property
    def answers(self) -> bool:
        """Whether the server is drained and may still receive requests."""
        return self.draining_since is not None and self._closed_since is None

    @property
    def draining(self) -> str:
        """Why no action begins on the server; empty if it is not drained."""
        if self.draining_since is None:
            return ""
        return (
            "it is being restarted to free its memory" if self._restarting else "it is being drained to free its memory"
        )

    def look(
        self,
        holds: Mapping[str, str],
        busy: Iterable[str],
        moving: Iterable[str],
        events: EventLog,
        now: datetime,
    ) -> LeakStep:
        """Decide with the newest readings, and report changes.

        Args:
            holds: The active holds: the model by the hold's id.
            busy: Models with an action in flight.
            moving: Models that stay until they answer on another server.
            events: The event log.
            now: The time.

        Returns:
            What the loop must do: `LeakStep.RESTART`, `LeakStep.RESUME`, or nothing.
        """
        if self._restarting or self._rules.bound_bytes is None:
            return LeakStep.NOTHING
        server = self._excess(holds, tuple(busy), tuple(moving), now)
        decision, server_name = decide_leak(server, self._rules, now), self._scheduler.server
        changed, self._last = decision.step is not self._last.step, decision
        match decision.step:
            case LeakStep.TELL if sum(server.excess_bytes.values()) > self._told * _GREW:
                self._told = sum(server.excess_bytes.values())
                events.add("Warning", "MemoryLeak", server_name, decision.why)
            case LeakStep.DRAIN:
                self.draining_since, self._held = now, frozenset(holds)
                self._scheduler.draining = True
                events.add(
                    "Warning", "MemoryLeak", server_name, f"{decision.why}; the server is drained and then restarted"
                )
            case LeakStep.CLOSE:
                self._closed_since = now
            case LeakStep.WAIT if changed:
                logger.info("%s: the restart %s", server_name, decision.why)
            case LeakStep.RESUME:
                self.call_off(now)
                events.add("Normal", "RestartCancelled", server_name, decision.why)
                return LeakStep.RESUME
            case LeakStep.RESTART:
                self._restarting, self._before = True, dict(server.excess_bytes)
                events.add("Warning", "ServerRestarting", server_name, decision.why)
                return LeakStep.RESTART
        return LeakStep.NOTHING

    def call_off(self, now: datetime) -> None:
        """Cancel the drain, unless the restart has begun."""
        if self.draining_since is not None and not self._restarting:
            self._end()
            self._scheduler.resume(now)

    def on_restarted(self, events: EventLog, now: datetime) -> None:
        """Reset the state after the server restarted for any reason."""
        if self._restarting:
            self.restarts += 1
            self._restarted_at = now
            freed = ", ".join(f"{size_text(size)} on {device}" for device, size in self._before.items() if size > 0)
            events.add(
                "Normal",
                "ServerRestarted",
                self._scheduler.server,
                f"freed unaccounted memory: {freed or 'none'}; the models are loaded again",
            )
        self._end()

    def view(self) -> LeakView:
        """Return the state for the API."""
        return LeakView(
            bound_bytes=self._rules.bound_bytes,
            state="restarting" if self._restarting else "draining" if self.draining_since else "watching",
            why=self._last.why,
            excess_bytes=self._scheduler.accounts.excess(supervised=self._supervised),
            over_since=self._over_since,
            draining_since=self.draining_since,
            restarted_at=self._restarted_at,
            restarts=self.restarts,
        )

    def _excess(
        self, holds: Mapping[str, str], busy: tuple[str, ...], moving: tuple[str, ...], now: datetime
    ) -> ServerExcess:
        accounts = self._scheduler.accounts
        excess = accounts.excess(supervised=self._supervised)
        if not over(excess, self._rules):
            self._over_since, self._told = None, 0
        elif self._over_since is None:
            self._over_since = now
        return ServerExcess(
            excess_bytes=excess,
            ledger_bytes={device: accounts.ledger.held(device) for device in excess},
            supervised=self._supervised,
            over_since=self._over_since,
            draining_since=self.draining_since,
            closed_since=self._closed_since,
            restarted_at=self._restarted_at,
            busy=tuple(sorted(busy)),
            # Newer holds wait for the restart, so the restart must not wait for them.
            held=tuple(sorted({model for lease, model in holds.items() if lease in self._held})),
            moving=tuple(sorted(moving)),
            pending=tuple(sorted(self._scheduler.pending)),
            strangers=accounts.strangers(),
        )

    def _end(self) -> None:
        self.draining_since, self._over_since, self._restarting, self._held = None, None, False, frozenset()
        self._closed_since = None
        self._told = 0
        self._scheduler.draining = False
        self._last = LeakDecision(LeakStep.NOTHING)


def rules_of(settings: MemorySettings) -> LeakRules:
    """Return the rules from the settings."""
    return LeakRules(
        bound_bytes=settings.leak_restart_threshold_bytes,
        patience_seconds=settings.leak_confirm_seconds,
        drain_seconds=settings.leak_drain_seconds,
        interval_seconds=settings.leak_restart_interval_seconds,
    )
