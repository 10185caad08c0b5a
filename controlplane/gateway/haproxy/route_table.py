"""The table by which HAProxy routes models, how it changes, and the commands that apply the change. Pure.

HAProxy selects a backend with a map from the model's name to the number of a *slot*. The first slots are fixed, one for
each server, so that a model with one replica always has a slot, however many servers there are. Each of the other slots
is a backend that lists all servers, of which those of one set are in service. Deployments with several replicas mostly
run on a few different sets of servers, so a few such slots suffice for any number of models, and no change needs a
reload.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.domain.access import matches
from controlplane.gateway.routes import version_label
from controlplane.reconciler.routes import Route

MODELS, VERSIONS, SPLITS, KEYS, GRANTS = MAPS = ("models.map", "versions.map", "splits.map", "keys.map", "grants.map")
ALL = "*"
"""Value in the map of keys that marks a key for all models."""


@dataclass(frozen=True, slots=True)
class Table:
    """The content of HAProxy's maps and slots.

    Attributes:
        slots: The servers in service, by slot.
        fixed: How many of the first slots never change.
        models: The slot of every model with a direct route.
        versions: The active version, for the metrics, of every model with a direct route.
        splits: The requests per million that are drawn to be measured, for every model with a rollout in progress.
        keys: `ALL` by digest of a key for all models; the digest itself for a key that is bound to models.
        grants: The models that bound keys may use directly: ``digest/model``.
    """

    slots: tuple[frozenset[str], ...]
    models: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    grants: Mapping[str, int] = field(default_factory=dict)
    fixed: int = 0

    def entries(self, name: str) -> Mapping[str, str | int]:
        """Return the entries of one of the maps."""
        maps: dict[str, Mapping[str, str | int]] = {
            MODELS: self.models,
            VERSIONS: self.versions,
            SPLITS: self.splits,
            KEYS: self.keys,
            GRANTS: self.grants,
        }
        return maps[name]

    def map_text(self, name: str) -> str:
        """Return the content of one of the map files."""
        return "".join(f"{key} {value}\n" for key, value in sorted(self.entries(name).items()))


def empty(slots: int, servers: Sequence[str] = ()) -> Table:
    """Return a table without routes, with a slot for each server and ``slots`` more."""
    return Table((*(frozenset({one}) for one in servers), *(frozenset[str](),) * slots), fixed=len(servers))


def arrange(
    before: Table, routes: Mapping[str, Route], direct: Mapping[str, tuple[str, ...]], splits: Mapping[str, int]
) -> Table:
    """Return the table for these routes, changing as few slots as possible.

    A model for whose set of servers there is no slot is left out: the activator serves it.

    Args:
        before: The current table.
        routes: The open routes.
        direct: Patterns of model names by digest of the keys whose requests may go directly.
        splits: How many requests per million are measured, by model with a rollout in progress.
    """
    wanted = dict.fromkeys(frozenset(route.servers) for route in routes.values())
    slots = list(before.slots)
    place = {servers: number for number, servers in enumerate(slots) if servers in wanted}
    free = [number for number, servers in enumerate(slots) if number >= before.fixed and servers not in wanted]
    free.sort(key=lambda number: bool(slots[number]))  # never used slots first
    for servers in wanted:
        if servers not in place and free:
            place[servers] = free.pop(0)
            slots[place[servers]] = servers
    models = {model: place[frozenset(r.servers)] for model, r in routes.items() if frozenset(r.servers) in place}
    return Table(
        tuple(slots),
        models,
        {model: version_label(routes[model]) for model in models},
        {model: parts for model, parts in splits.items() if model in models},
        {digest: digest if patterns else ALL for digest, patterns in direct.items()},
        {
            f"{digest}/{model}": 1
            for digest, patterns in direct.items()
            if patterns
            for model in models
            if matches(patterns, model)
        },
        before.fixed,
    )


def commands(before: Table, after: Table, servers: Iterable[str]) -> list[str]:
    """Return the commands of HAProxy's runtime API that change one table into the other, in a safe order.

    First all changed entries are removed, then slots change, then the new entries are added. In between a model is at
    worst missing, and the activator gets its requests; no request is sent to a server that does not have the model.
    """
    known = list(servers)
    out, states, into = [], [], []
    changed = {number for number, pair in enumerate(zip(before.slots, after.slots, strict=True)) if pair[0] != pair[1]}
    for name in MAPS:
        old, new = before.entries(name), after.entries(name)
        moved: Collection[str | int] = changed if name == MODELS else ()
        if name in (VERSIONS, SPLITS):  # changed in one step: no request may be routed as if there were no rollout
            states += [f"set map {name} {key} {new[key]}" for key in old.keys() & new.keys() if old[key] != new[key]]
            old = {key: new.get(key, value) for key, value in old.items()}
        for key, value in old.items():
            if new.get(key) != value or value in moved:
                out.append(f"del map {name} {key}")
        for key, value in new.items():
            if old.get(key) != value or value in moved:
                into.append(f"add map {name} {key} {value}")
    for number in sorted(changed):
        for server in known:
            is_in = server in after.slots[number]
            if is_in != (server in before.slots[number]):
                states += [
                    f"set server {kind}-{number}/{server} state {'ready' if is_in else 'maint'}" for kind in "hg"
                ]
    return out + states + into
