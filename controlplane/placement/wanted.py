"""How many servers each pool needs: the signal by which an engine adds and removes servers. Pure.

A pool is the set of servers with one value of a label. It needs the servers to which the plan assigns replicas that are
in use, and as many more as are necessary for the replicas that have no place. The latter is found by planning again
with further servers like the largest one of the pool, until they help no more.
"""

from collections.abc import Set
from dataclasses import dataclass, replace

from controlplane.placement.planner import plan
from controlplane.placement.types import Plan, Server, Workload

NO_POOL = "default"
"""The pool of servers without the label, and of models that do not select a pool."""
_MORE_MAX = 16
"""Maximum number of further servers for one pool; the next evaluation continues from there."""


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """The signals by which a pool is scaled.

    Attributes:
        servers: The number of servers that it needs.
        queue_seconds: Time that requests have spent in the queues of its servers so far.
    """

    servers: int
    queue_seconds: float


def pool_of(server: Server, label: str) -> str:
    """Return the pool of a server."""
    return server.labels.get(label) or NO_POOL


def wanted_servers(made: Plan, label: str, idle: Set[str] = frozenset()) -> dict[str, int]:
    """Return the number of servers that each pool needs.

    Args:
        made: The current plan.
        label: The label that names the pool of a server.
        idle: Models that need no server now: on-demand models that are neither loaded nor requested.

    Returns:
        The number by pool, for every pool of which a server is known or that a model selects.
    """
    used: dict[str, set[str]] = {pool_of(server, label): set() for server in made.servers.values()}
    for name, usage in made.server_usage.items():
        if any(model not in idle for model in usage.models):
            used.setdefault(pool_of(made.servers[name], label), set()).add(name)
    missing: dict[str, list[Workload]] = {}
    for model, workload in made.workloads.items():
        pool = dict(workload.selector).get(label) or NO_POOL
        used.setdefault(pool, set())
        if model not in idle and len(made.assignments.get(model, ())) < workload.replicas:
            missing.setdefault(pool, []).append(workload)
    return {
        pool: len(servers) + _more(made, label, pool, missing[pool]) if pool in missing else len(servers)
        for pool, servers in sorted(used.items())
    }


def _more(made: Plan, label: str, pool: str, missing: list[Workload]) -> int:
    """Return how many further servers help to place the missing replicas."""
    there = [server for server in made.servers.values() if pool_of(server, label) == pool]
    if not there:  # nothing is known of its servers: one for each replica of a model, because these need several
        return max(workload.min_replicas for workload in missing)
    like = max(there, key=lambda server: (server.has_gpu, sum(pool.bytes for pool in server.pools), server.name))
    names = [workload.model for workload in missing]
    tried, left, needed = made, _left(made, names), 0
    for number in range(1, _MORE_MAX + 1):
        new = replace(like, name=f"\x00{number}", trouble="", drained="", cordoned="")
        tried = plan(tried, {**tried.servers, new.name: new}, made.workloads)
        now = _left(tried, names)
        if now >= left:
            break
        left, needed = now, number
        if not left:
            break
    return needed


def _left(made: Plan, models: list[str]) -> int:
    return sum(max(made.workloads[model].replicas - len(made.assignments.get(model, ())), 0) for model in models)
