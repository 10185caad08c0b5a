"""Request counts of each model from Triton's counters, without the control plane's own requests."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from controlplane.memory.model_state import ModelMemoryState
from controlplane.servers.readings import ServerReading
from controlplane.triton.statistics import VersionKey


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests between the previous reading and this one.

    Attributes:
        requests: Their number, without our own.
        used: The models that they were for.
        changed: The models whose usage changed.
    """

    requests: int
    used: frozenset[str]
    changed: frozenset[str]


def count_requests(
    model_states: Mapping[str, ModelMemoryState],
    reading: ServerReading,
    busy: frozenset[str],
    now: datetime,
    *,
    pending: set[str],
) -> Counted:
    """Update the models' usage from the newest counters.

    Only models with Triton counters, and those with pending requests, are visited.

    Args:
        model_states: The models on one server, by name.
        reading: The reading with its counters.
        busy: Models that the control plane is sending requests to now; their counters wait for the next reading.
        now: The time.
        pending: Models that had pending requests at the previous reading; updated in place.
    """
    by_model: dict[str, list[VersionKey]] = {}
    for key in reading.counters or {}:
        by_model.setdefault(key[0], []).append(key)
    total, used_now, changed = 0, set(), set()
    for model in sorted((by_model.keys() | pending) - busy):
        model_state = model_states.get(model)
        if model_state is None:
            continue
        before, keys = model_state.demand.usage, by_model.get(model, [])
        if reading.pending is not None:
            waiting = sum(reading.pending.get(key, 0) for key in keys)
            model_state.demand.set_pending(waiting)
            (pending.add if waiting else pending.discard)(model)
        total += _count(model_state, keys, reading, now)
        if model_state.demand.usage is not before:
            changed.add(model)
        if model_state.demand.usage.last_used_at != before.last_used_at:
            used_now.add(model)
    return Counted(total, frozenset(used_now), frozenset(changed))


def _count(model_state: ModelMemoryState, keys: Iterable[VersionKey], reading: ServerReading, now: datetime) -> int:
    asked, newest = 0, None
    for key in keys:
        counters = (reading.counters or {})[key]
        before = model_state.demand.counts.get(key)
        model_state.demand.count(key, counters.requests)
        if before is None and model_state.stats.loads == 0:
            # It was loaded before this process started: the time of its last request is still meaningful.
            if counters.last_at is not None and model_state.demand.usage.last_used_at is None:
                model_state.demand.use(min(counters.last_at, now))
            continue
        before = before or 0
        # Lower than before: another client reloaded the model, and its counters started at zero.
        asked += counters.requests - before if counters.requests >= before else counters.requests
        if counters.last_at is not None:
            newest = max(newest or counters.last_at, counters.last_at)
    requests = model_state.demand.without_probes(asked)
    model_state.demand.use(min(newest or now, now), requests)
    return requests
