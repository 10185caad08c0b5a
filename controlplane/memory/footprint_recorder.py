"""Measurements of loads, and the part of them that is kept as the version's footprint. Mutable; owned by the scheduler.

A version is measured once for each load, when it was proved: from the memory of its own processes, or if that cannot be
read, from the growth of its device's use during the load. Later, only increases are recorded: growth, and memory left
behind.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.lifecycle.desired import PreparedVersion
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.model_state import ModelMemoryState
from controlplane.memory.policy.types import HOST, ModelMemory
from controlplane.memory.retained_memory import RetainedMemory
from controlplane.memory.sizing import FootprintResolver, Size
from controlplane.registry.footprints import FootprintKey, Footprints, MeasuredFootprint
from controlplane.triton.statistics import VersionKey

GREW = 1.1
"""Memory that grew by this factor since the last report is reported again."""


@dataclass(frozen=True)
class FootprintSample:
    """A measurement to be written to the registry."""

    key: FootprintKey
    measured: MeasuredFootprint


class FootprintRecorder:
    """Measures the versions of one server.

    Args:
        accounts: Its ledger and readings.
        footprints: Earlier measurements; only those in memory are used.
        sizes: What versions need.
        model_states: The memory state of each model.
        models: The models that hold memory, as the policies see them.
        retained_memory: Memory that versions left behind.
        counters: Event counts.

    Attributes:
        largest_error: The largest excess of a measurement over its estimate, in bytes.
    """

    def __init__(
        self,
        accounts: LedgerSync,
        footprints: Footprints,
        sizes: FootprintResolver,
        *,
        model_states: Mapping[str, ModelMemoryState],
        models: Mapping[str, ModelMemory],
        retained_memory: RetainedMemory,
        counters: Counter[str],
    ) -> None:
        self.largest_error = 0
        self._accounts = accounts
        self._footprints = footprints
        self._sizes = sizes
        self._model_states = model_states
        self._models = models
        self._retained_memory = retained_memory
        self._counters = counters
        self._keys: dict[VersionKey, FootprintKey] = {}

    def proved(self, model_state: ModelMemoryState, prepared: PreparedVersion, seconds: float) -> list[FootprintSample]:
        """Measure a version that was just proved, unless it was measured since its load or cannot be measured yet.

        Args:
            model_state: The model.
            prepared: The version.
            seconds: Duration of the proof.
        """
        if model_state.residency.measured or self._leaves_behind(model_state.model, prepared):
            return []
        model_state.residency.was_measured()
        self._sizes.proved(self._size(prepared, model_state.model))
        model_state.stats.took((model_state.stats.load_seconds or 0.0) + seconds)
        measured = self._measure(model_state, prepared)
        if measured is None:
            return []
        size = self._size(prepared, model_state.model)
        error = measured.bytes - size.estimate.bytes
        self._counters["measured"] += 1
        self._counters["estimate_error_bytes"] += abs(error)
        self.largest_error = max(self.largest_error, error)
        return [FootprintSample(size.key, measured)]

    def grown(self) -> list[FootprintSample]:
        """Return samples of versions that grew beyond their recorded footprint."""
        found = []
        for model, known in self._models.items():
            model_state = self._model_states.get(model)
            if model_state is None or not model_state.residency.measured:
                continue
            key = self._keys.get((model, known.version))
            recorded = self._footprints.peek(key) if key else None
            if key is None or recorded is None or recorded.by != "processes":
                continue
            own = self._accounts.own_bytes((model, known.version), known.footprint)
            if own is None:
                continue
            grown = own[0] > recorded.bytes * GREW
            if grown or own[1] > recorded.inference_peak_bytes * GREW:
                resident = own[0] if grown else recorded.bytes
                peak = max(own[1], recorded.inference_peak_bytes)
                found.append(FootprintSample(key, replace(recorded, bytes=resident, inference_peak_bytes=peak)))
        return found

    def left(self) -> list[FootprintSample]:
        """Return samples of the memory that unloaded versions left behind."""
        found = []
        for version, size in self._retained_memory.found().items():
            key = self._keys.get(version)
            recorded = self._footprints.peek(key) if key else None
            if key is not None and recorded is not None:
                found.append(FootprintSample(key, replace(recorded, left_bytes=size)))
        return found

    def _size(self, prepared: PreparedVersion, model: str) -> Size:
        return self._sizes.of(prepared, model, self._accounts)

    def _leaves_behind(self, model: str, prepared: PreparedVersion) -> bool:
        """Return whether processes of the version's previous load remain; it is measured when they are gone."""
        instance = self._accounts.instances.get((model, prepared.target.version))
        size = self._size(prepared, model)
        expected = size.key.instances * max(sum(device != HOST for device in size.devices), 1)
        return instance is not None and instance.processes > expected

    def _measure(self, model_state: ModelMemoryState, prepared: PreparedVersion) -> MeasuredFootprint | None:
        size = self._size(prepared, model_state.model)
        own = self._accounts.own_bytes((model_state.model, prepared.target.version), size.devices)
        if own is not None:
            (resident, most), by = own, "processes"
            peak = model_state.residency.load_peak or most
        elif model_state.residency.load_growth:
            resident = peak = max(model_state.residency.load_growth.values())
            most, by = 0, "device"
        else:
            return None
        self._keys[model_state.model, prepared.target.version] = size.key
        return MeasuredFootprint(
            resident, peak, model_state.stats.load_seconds or 0.0, size.estimate.bytes, by, inference_peak_bytes=most
        )
