"""Decides when a server that leaks memory is restarted. Pure: readings in, the next step out.

Frameworks keep memory that belongs to no model any more: arenas that do not shrink, buffers of the largest tensors so
far, plain leaks. Only the end of the process frees all of it (Triton issues #4966, #7020, #7727). A restart costs every
model a load, so it needs a measurable reason and a quiet moment, and is rare.

The decision tree, whose numbers appear in the code:

1.  The server is draining.
    1.1  the memory was freed without a restart: resume
    1.2  actions are in flight: wait until they end; they have deadlines of their own
    1.3  models are held, or move to other servers, and the drain time is not over: wait; models that are active on no
         other server still get requests here
    1.4  stop routing requests to the server
    1.5  requests are pending, and the close time is not over: wait
    1.6  restart
2.  There is no bound, or no device is above it: do nothing.
3.  A device is above it, and a restart
    3.1  is not possible, as the server is not supervised: report
    3.2  may be premature, as the excess may be temporary: watch
    3.3  would be too soon after the last one: report
    3.4  would unload models that would not be loaded again: report
    3.5  is due: drain
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from controlplane.domain.units import size_text

_NAMED = 5


class LeakStep(StrEnum):
    """What to do about the unaccounted memory."""

    NOTHING = "nothing"
    WATCH = "watch"
    TELL = "tell"
    """The excess is too large, but only an operator can act on it, or the action must wait."""
    DRAIN = "drain"
    WAIT = "wait"
    CLOSE = "close"
    """Gateways stop sending requests to the server."""
    RESUME = "resume"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class LeakRules:
    """Thresholds and times.

    Attributes:
        bound_bytes: What a device may have beyond the ledger; None for no bound.
        patience_seconds: How long it must be above the bound without interruption.
        drain_seconds: How long to wait for holds to end and for models to move to other servers.
        close_seconds: How long to wait for pending requests after routing stopped; direct clients of Triton may go on.
        interval_seconds: Minimum time between two restarts of a server.
    """

    bound_bytes: int | None = None
    patience_seconds: float = 10.0
    drain_seconds: float = 60.0
    close_seconds: float = 10.0
    interval_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class ServerExcess:
    """One server at one moment.

    Attributes:
        excess_bytes: Memory in use beyond the ledger, by device.
        ledger_bytes: Memory counted by the ledger, by device.
        supervised: Whether the control plane can restart the server.
        over_since: Since when it is above the bound without interruption; None if it is not.
        draining_since: Since when it is draining; None if it is not.
        closed_since: Since when no requests are routed to it; None while they are.
        restarted_at: The last restart for this reason.
        busy: Models with an action in flight.
        held: Models with a hold from before the drain.
        moving: Models that stay until they are active on another server.
        pending: Models with requests that wait or run.
        strangers: Loaded models without a deployment, which would not be loaded again after a restart.
    """

    excess_bytes: Mapping[str, int]
    ledger_bytes: Mapping[str, int] = field(default_factory=dict)
    supervised: bool = True
    over_since: datetime | None = None
    draining_since: datetime | None = None
    closed_since: datetime | None = None
    restarted_at: datetime | None = None
    busy: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeakDecision:
    """The next step and its reason, as one sentence with sizes."""

    step: LeakStep
    why: str = ""


def over(excess: Mapping[str, int], rules: LeakRules) -> dict[str, int]:
    """Return the devices that are above the bound, with their excess."""
    if rules.bound_bytes is None:
        return {}
    return {device: size for device, size in excess.items() if size > rules.bound_bytes}


def decide_leak(server: ServerExcess, rules: LeakRules, now: datetime) -> LeakDecision:
    """Decide what to do about a server's unaccounted memory."""
    found = over(server.excess_bytes, rules)
    if server.draining_since is not None:  # 1
        return _draining(server, found, rules, now)
    if not found:  # 2
        return LeakDecision(LeakStep.NOTHING)
    figures = _figures(found, server, rules)
    if not server.supervised:  # 3.1
        return LeakDecision(LeakStep.TELL, f"{figures}; restart this external server: its models are then loaded again")
    if server.over_since is None or now - server.over_since < timedelta(seconds=rules.patience_seconds):  # 3.2
        return LeakDecision(LeakStep.WATCH, figures)
    if server.restarted_at is not None:  # 3.3
        due = server.restarted_at + timedelta(seconds=rules.interval_seconds)
        if now < due:
            return LeakDecision(
                LeakStep.TELL,
                f"{figures}; it was restarted for this at {server.restarted_at:%H:%M:%S} UTC and is not restarted "
                f"again before {due:%H:%M:%S} UTC",
            )
    if server.strangers:  # 3.4
        return LeakDecision(
            LeakStep.TELL,
            f"{figures}; it is not restarted, because its unmanaged models would not be loaded again: "
            f"{_names(server.strangers)}; unload or deploy them",
        )
    return LeakDecision(LeakStep.DRAIN, figures)  # 3.5


def _draining(server: ServerExcess, found: Mapping[str, int], rules: LeakRules, now: datetime) -> LeakDecision:
    assert server.draining_since is not None
    if not found:  # 1.1
        return LeakDecision(LeakStep.RESUME, "the unaccounted memory was freed without a restart")
    if server.busy:  # 1.2
        return LeakDecision(LeakStep.WAIT, f"waits for actions in progress: {_names(server.busy)}")
    if now - server.draining_since < timedelta(seconds=rules.drain_seconds):  # 1.3
        if server.moving:
            return LeakDecision(LeakStep.WAIT, f"waits for models that move to other servers: {_names(server.moving)}")
        if server.held:
            return LeakDecision(LeakStep.WAIT, f"waits for the holds on {_names(server.held)}")
    if server.closed_since is None:  # 1.4
        return LeakDecision(LeakStep.CLOSE, "no more requests are sent to it")
    if server.pending and now - server.closed_since < timedelta(seconds=rules.close_seconds):  # 1.5
        return LeakDecision(LeakStep.WAIT, f"waits for requests: {_names(server.pending)}")
    users = tuple(dict.fromkeys((*server.held, *server.pending)))
    waited = (now - server.draining_since).total_seconds()
    still = f"; after {waited:.0f} s of waiting still used: {_names(users)}" if users else ""
    return LeakDecision(LeakStep.RESTART, _figures(found, server, rules) + still)  # 1.6


def _figures(found: Mapping[str, int], server: ServerExcess, rules: LeakRules) -> str:
    said = ", ".join(
        f"{size_text(size)} on {device} beyond the {size_text(server.ledger_bytes.get(device, 0))} of the ledger"
        for device, size in found.items()
    )
    return f"unaccounted memory: {said}; the bound is {size_text(rules.bound_bytes or 0)}"


def _names(names: tuple[str, ...]) -> str:
    named = ", ".join(names[:_NAMED])
    return f"{named} and {len(names) - _NAMED} more" if len(names) > _NAMED else named
