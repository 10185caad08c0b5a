"""Detects changes that other clients make on our servers: unmanaged models, and external changes of managed ones.

Every client that can reach Triton's control API can change its models. The planner reverts changes to managed models,
because they differ from the desired state; this module reports that the change came from outside. Unmanaged models are
reported and left loaded, because we could not restore them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from controlplane.domain.index_states import READY
from controlplane.domain.names import CANDIDATE_SUFFIX, TUNING_SUFFIX
from controlplane.domain.states import LoadedVersion
from controlplane.domain.units import size_text
from controlplane.lifecycle.observation import AppliedConfig, ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.server_state import TrackedServer
from controlplane.servers.readings import ServerReading
from controlplane.triton.config_json import differences
from controlplane.triton.instance_groups import on_gpus, said_gpus
from controlplane.triton.statistics import VersionKey


def judged(
    facts: ReplicaObservation, config: Mapping[str, Any], ours: AppliedConfig | None, asked: Mapping[str, Any] | None
) -> tuple[ReplicaObservation, AppliedConfig | None]:
    """Return an observation, marked as externally modified or not, and the configuration now known to be ours.

    The digest in a configuration identifies what it was made from, but a client that loads the model again with a
    changed copy keeps the digest. So the complete configuration is compared with the one that Triton reported right
    after our own load. If that is unknown (this process has just started, or the result of the load was lost), it is
    compared with what the load requested; Triton may have additional fields that were not requested.

    Args:
        facts: The observation in a snapshot.
        config: The configuration that Triton reported.
        ours: The configuration known to be ours before the snapshot.
        asked: Our configuration with the observed digest, without GPUs; None if no desired target has that digest. The
            planner then replaces the loaded versions, regardless of their origin.
    """
    if not facts.loaded or not facts.fingerprint:
        return facts, ours
    if ours is not None and (ours.loaded, ours.digest) == (facts.loaded, facts.digest):
        return replace(facts, externally_modified=facts.fingerprint != ours.fingerprint), ours
    if asked is None or facts.digest is None:
        return facts, ours
    gpus = said_gpus(config)
    if differences(on_gpus(asked, gpus), config):
        return replace(facts, externally_modified=True), ours
    return facts, AppliedConfig(facts.loaded, facts.digest, facts.fingerprint, gpus)


def external_change(before: ReplicaObservation | None, now: ReplicaObservation) -> str:
    """Return what another client did to a model; empty if nothing.

    A load is reported when it begins. A load in progress at the first snapshot may be ours, from before a restart.

    Args:
        before: The earlier observation, with no action of this process since; None if unknown.
        now: The present observation.
    """
    if before is None:
        return f"{_versions(now.loaded)} was loaded with another configuration" if now.externally_modified else ""
    if before.loading:
        return ""
    if now.loading:
        return "a load was started"
    if not now.loaded:
        return f"{_versions(before.loaded)} was unloaded" if before.loaded else ""
    if not before.loaded:
        return f"{_versions(now.loaded)} was loaded"
    if now.loaded != before.loaded:
        return f"{_versions(now.loaded)} was loaded in place of {_versions(before.loaded)}"
    if now.digest != before.digest or (now.externally_modified and not before.externally_modified):
        return f"{_versions(now.loaded)} was loaded again with another configuration"
    return ""


def _versions(numbers: Collection[int]) -> str:
    return f"version {', '.join(str(number) for number in sorted(numbers))}"


def unmanaged_models(known: Collection[str], index: Iterable[LoadedVersion], reading: ServerReading) -> set[VersionKey]:
    """Return the loaded versions that belong neither to a deployment nor to a copy that the control plane made.

    Models that were loaded with files in the request (``file:``) are not in the index, but have counters.
    """
    loaded = {(one.model, one.version) for one in index if one.state == READY} | set(reading.counters or ())
    return {
        (name, version)
        for name, version in loaded
        if name.removesuffix(CANDIDATE_SUFFIX) not in known and not name.endswith(TUNING_SUFFIX)
    }


class ExternalChangeDetector:
    """Reports the changes that other clients make.

    Args:
        state: The loop's state.
        complete: Whether all deployments were read; before that, no model is known to be unmanaged.
        tenure: See `HeldModel.tenure`. While another process leads, or may lead, changes are attributed to it.
    """

    def __init__(self, state: LoopState, *, complete: Callable[[], bool], tenure: Callable[[], int]) -> None:
        self._state = state
        self._complete = complete
        self._tenure = tenure
        self._unknown: dict[str, set[VersionKey]] = {}
        self._tenure_told = 0

    def judge(self, server: TrackedServer, unit: Replica, facts: ReplicaObservation) -> ReplicaObservation:
        """Return the newest observation of a managed model, marked as externally modified or not."""
        prepared = self._state.desired_state[unit.model].prepared
        asked = next((one.config for target, one in prepared.items() if target.digest == facts.digest), None)
        verdict, unit.applied_config = judged(
            facts, server.snapshot.configs.get(unit.model, {}), unit.applied_config, asked
        )
        return verdict

    def compare(self, server: TrackedServer, unit: Replica) -> None:
        """Report external changes of a managed model, before any action on them."""
        tenure, embedded = self._tenure(), server.managed.embedded
        if not tenure or unit.facts is None or unit.facts is unit.baseline_observation:
            return
        if embedded is not None and embedded.generation != server.snapshot.generation:
            return  # it restarted, and is empty for that reason; the next snapshot shows this
        if tenure != self._tenure_told:
            self._tenure_told = tenure
            for one in self._state.servers.values():
                for each in one.units.values():
                    each.baseline_observation = None
        before, unit.baseline_observation = unit.baseline_observation, unit.facts
        if unit.load_overdue:
            return  # our own load is still in progress
        what = external_change(before, unit.facts)
        if not what:
            return
        supervised = server.managed.embedded is not None
        who = "another client" if supervised else "another client or a restart of the server"
        message = f"on {server.name}: {what} by {who}; differences from the deployment are corrected"
        self._state.events.add("Warning", "ExternalChange", unit.model, message)

    def forget(self, server: str) -> None:
        """Remove what is known of a server that left."""
        self._unknown.pop(server, None)

    def count(self, server: TrackedServer, reading: ServerReading) -> None:
        """Report which unmanaged models appeared and disappeared."""
        if server.away or not self._complete() or reading.counters is None:
            return
        present = unmanaged_models(self._state.desired_state.keys(), server.snapshot.index, reading)
        told, self._unknown[server.name] = self._unknown.get(server.name, set()), present
        for key in sorted(present - told):
            message = f"unmanaged model {_named(key)} is loaded ({_size(key, reading)}, not in the ledger)"
            self._state.events.add(
                "Warning", "UnmanagedModel", server.name, f"{message}; adopt it (`tritonctl adopt`) or unload it"
            )
        for key in sorted(told - present):
            self._state.events.add(
                "Normal", "UnmanagedModelRemoved", server.name, f"unmanaged model {_named(key)} is no longer loaded"
            )


def _named(key: VersionKey) -> str:
    return f"{key[0]}:{key[1]}"


def _size(key: VersionKey, reading: ServerReading) -> str:
    name, version = key
    label = re.compile(rf"{re.escape(name)}(_\d+)?")
    sizes = [
        one.resident_bytes
        for (other, number), one in (reading.instances or {}).items()
        if number == version and label.fullmatch(other)
    ]
    if not sizes:
        return "unknown size"
    return size_text(sum(sizes))
