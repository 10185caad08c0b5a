"""What others do on our servers: models that no deployment asked for, and ours, changed by hand.

Triton's control API takes orders from everybody who reaches it. What is ours is put right by the planner, because it
differs from what is wanted; here is told that it was not our doing. What is no deployment of ours is reported and left
alone: somebody needs it, perhaps, and nobody could bring it back.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from controlplane.domain.names import CANDIDATE_SUFFIX, TUNING_SUFFIX
from controlplane.domain.states import LoadedVersion
from controlplane.memory.ledger import size_text
from controlplane.reconciler.facts import READY, Facts
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.state import LoopState
from controlplane.reconciler.units import Unit
from controlplane.triton.statistics import VersionKey


def judged(now: Facts, before: Facts | None) -> Facts:
    """Return what a look showed with the verdict whether its configuration is ours.

    The digest that we write into a configuration tells from what of ours it was made. Who loads a model again with a
    changed copy of it leaves the digest as it was; so the whole is remembered as Triton told it after our own load.
    """
    same = before is not None and (before.loaded, before.digest) == (now.loaded, now.digest)
    if before is None or not same or not before.ours or not now.fingerprint:
        return replace(now, ours=now.fingerprint)
    return replace(now, ours=before.ours, foreign=now.fingerprint != before.ours)


def changed_by_others(before: Facts, now: Facts) -> str:
    """Say what somebody else did to a model between two looks with no action of ours; empty where nothing.

    A load is told when it begins. One that was going on at the first look may be ours, from before a restart.
    """
    if before.loading:
        return ""
    if now.loading:
        return "a load was begun"
    if not now.loaded:
        return f"{_versions(before.loaded)} was unloaded" if before.loaded else ""
    if not before.loaded:
        return f"{_versions(now.loaded)} was loaded"
    if now.loaded != before.loaded:
        return f"{_versions(now.loaded)} was loaded in place of {_versions(before.loaded)}"
    if now.digest != before.digest or (now.foreign and not before.foreign):
        return f"{_versions(now.loaded)} was loaded again with another configuration"
    return ""


def _versions(numbers: Collection[int]) -> str:
    return f"version {', '.join(str(number) for number in sorted(numbers))}"


def unknown_models(known: Collection[str], index: Iterable[LoadedVersion], reading: Reading) -> set[VersionKey]:
    """Return what a server has loaded that is no deployment of ours, and no copy of one that we made.

    What was loaded with files of the request (``file:``) is not in the index, but has counters.
    """
    loaded = {(one.model, one.version) for one in index if one.state == READY} | set(reading.counters or ())
    return {
        (name, version)
        for name, version in loaded
        if name.removesuffix(CANDIDATE_SUFFIX) not in known and not name.endswith(TUNING_SUFFIX)
    }


class Foreigners:
    """Tells what others do.

    Args:
        state: What the loop knows.
        complete: Whether all deployments were read; before, nobody can say that a model is none.
        leading: Whether this process acts. Who follows sees the leader's doings, which are no one else's.
    """

    def __init__(self, state: LoopState, *, complete: Callable[[], bool], leading: Callable[[], bool]) -> None:
        self._state = state
        self._complete = complete
        self._leading = leading
        self._unknown: dict[str, set[VersionKey]] = {}
        self._led: dict[str, bool] = {}

    def looked(self, server: KnownServer) -> bool:
        """A look at a server was taken in; return whether all that changed since the one before was not our doing."""
        embedded = server.managed.embedded
        led, self._led[server.name] = self._led.get(server.name, False), self._leading()
        # A server that started anew during the look is empty for that reason; the next look has its new generation.
        return led and self._leading() and (embedded is None or embedded.generation == server.sight.generation)

    def compare(self, server: KnownServer, unit: Unit, before: Facts | None) -> None:
        """Tell what was done to a model of ours since the look before, where we did nothing."""
        if before is None or unit.facts is None or unit.overdue:
            return
        what = changed_by_others(before, unit.facts)
        if not what:
            return
        supervised = server.managed.embedded is not None
        who = "somebody else" if supervised else "somebody else, or a restart of the server"
        message = f"on {server.name}: {what} by {who}; what differs from the deployment is put right"
        self._state.events.add("Warning", "ChangedByOthers", unit.model, message)

    def count(self, server: KnownServer, reading: Reading) -> None:
        """Tell which models that are no deployment came and went."""
        if server.away or not self._complete() or reading.counters is None:
            return
        present = unknown_models(self._state.wishes.keys(), server.sight.index, reading)
        told, self._unknown[server.name] = self._unknown.get(server.name, set()), present
        for key in sorted(present - told):
            message = f"{_named(key)} is loaded and is no deployment: {_size(key, reading)}. It is left alone"
            self._state.events.add(
                "Warning", "UnknownModel", server.name, f"{message}; deploy it, or find out who loaded it and unload it"
            )
        for key in sorted(told - present):
            self._state.events.add("Normal", "UnknownModelGone", server.name, f"{_named(key)} is not loaded any more")


def _named(key: VersionKey) -> str:
    return f"{key[0]}:{key[1]}"


def _size(key: VersionKey, reading: Reading) -> str:
    name, version = key
    label = re.compile(rf"{re.escape(name)}(_\d+)?")
    sizes = [
        one.resident_bytes
        for (other, number), one in (reading.instances or {}).items()
        if number == version and label.fullmatch(other)
    ]
    if not sizes:
        return "nobody accounts for its memory, which cannot be measured from here"
    return f"nobody accounts for its memory, {size_text(sum(sizes))} now"
