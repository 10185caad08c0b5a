"""Which models HAProxy sends where: the table, how it changes, and the commands that make the change. Pure.

HAProxy chooses a backend by a map: the model's name gives the number of a *slot*. A slot is a backend that knows all
servers, of which those of one set are in service. Deployments mostly run on a few different sets of servers, so a few
slots do for any number of models, and no change needs a reload.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.reconciler.routing import Route

MODELS, STREAMS = "models.map", "streams.map"


@dataclass(frozen=True, slots=True)
class Table:
    """What HAProxy is told.

    Attributes:
        slots: The servers in service, by slot.
        models: The slot of every model that is asked directly.
        streams: The slot of every model whose gRPC streams go directly, too.
    """

    slots: tuple[frozenset[str], ...]
    models: Mapping[str, int] = field(default_factory=dict)
    streams: Mapping[str, int] = field(default_factory=dict)

    def map_text(self, name: str) -> str:
        """The content of one of the map files."""
        entries = self.models if name == MODELS else self.streams
        return "".join(f"{model} {slot}\n" for model, slot in sorted(entries.items()))


def empty(slots: int) -> Table:
    """A table of so many slots that sends nothing anywhere."""
    return Table((frozenset(),) * slots)


def arrange(before: Table, routes: Mapping[str, Route]) -> Table:
    """Return the table for these routes, changing as few slots as possible.

    A model whose set of servers finds no slot is left out: the activator serves it.
    """
    wanted = dict.fromkeys(frozenset(route.servers) for route in routes.values())
    slots = list(before.slots)
    place = {servers: number for number, servers in enumerate(slots) if servers in wanted}
    free = [number for number, servers in enumerate(slots) if servers not in wanted]
    free.sort(key=lambda number: bool(slots[number]))  # one that was never used before one that was
    for servers in wanted:
        if servers not in place and free:
            place[servers] = free.pop(0)
            slots[place[servers]] = servers
    models = {model: place[frozenset(r.servers)] for model, r in routes.items() if frozenset(r.servers) in place}
    return Table(tuple(slots), models, {model: slot for model, slot in models.items() if routes[model].stays})


def commands(before: Table, after: Table, servers: Iterable[str]) -> list[str]:
    """Return the commands of HAProxy's runtime API that lead from one table to the other, in a safe order.

    First everything leaves that does not stay as it is, then slots change, then what is new comes in. In between a
    model is at worst missing, and the activator takes its requests; none is sent to a server that does not have it.
    """
    known = list(servers)
    out, states, into = [], [], []
    changed = {number for number, pair in enumerate(zip(before.slots, after.slots, strict=True)) if pair[0] != pair[1]}
    for name, old, new in ((MODELS, before.models, after.models), (STREAMS, before.streams, after.streams)):
        for model, slot in old.items():
            if new.get(model) != slot or slot in changed:
                out.append(f"del map {name} {model}")
        for model, slot in new.items():
            if old.get(model) != slot or slot in changed:
                into.append(f"add map {name} {model} {slot}")
    for number in sorted(changed):
        for server in known:
            is_in = server in after.slots[number]
            if is_in != (server in before.slots[number]):
                states += [
                    f"set server {kind}-{number}/{server} state {'ready' if is_in else 'maint'}" for kind in "hg"
                ]
    return out + states + into
