"""How often each model was used, from Triton's counters, without what we asked ourselves."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from controlplane.memory.usage import used
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.tenants import Tenant
from controlplane.triton.statistics import VersionKey


def count(tenants: Iterable[Tenant], reading: Reading, busy: frozenset[str], now: datetime) -> int:
    """Take the newest counters into the tenants' usage.

    Args:
        tenants: The models on one server.
        reading: With its counters.
        busy: Models that we are asking ourselves at this moment: theirs wait for the next reading.
        now: The time.

    Returns:
        How many requests there were that are not ours.
    """
    by_model: dict[str, list[VersionKey]] = {}
    for key in reading.counters or {}:
        by_model.setdefault(key[0], []).append(key)
    total = 0
    for tenant in tenants:
        if tenant.model in busy:
            continue
        keys = by_model.get(tenant.model, [])
        if reading.pending is not None:
            pending = sum(reading.pending.get(key, 0) for key in keys)
            if pending != tenant.usage.pending:
                tenant.usage = replace(tenant.usage, pending=pending)
        total += _count(tenant, keys, reading, now)
    return total


def _count(tenant: Tenant, keys: Iterable[VersionKey], reading: Reading, now: datetime) -> int:
    asked, newest = 0, None
    for key in keys:
        counters = (reading.counters or {})[key]
        before = tenant.counts.get(key)
        tenant.counts[key] = counters.requests
        if before is None and tenant.loads == 0:
            # It was loaded before this process knew it: when it was asked last still says something.
            if counters.last_at is not None and tenant.usage.last_used_at is None:
                tenant.usage = used(tenant.usage, min(counters.last_at, now))
            continue
        before = before or 0
        # Fewer than before: somebody loaded it again, and they began at zero.
        asked += counters.requests - before if counters.requests >= before else counters.requests
        if counters.last_at is not None:
            newest = max(newest or counters.last_at, counters.last_at)
    ours = min(tenant.ours, asked)
    tenant.ours -= ours
    if asked > ours:
        tenant.usage = used(tenant.usage, min(newest or now, now), asked - ours)
    return asked - ours
