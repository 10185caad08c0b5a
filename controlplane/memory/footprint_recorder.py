"""What a load measured, and what of it is kept as the version's footprint. Mutable; the steward's own.

A version is measured once for each load, when it was proved: by what its own processes have, or where nobody sees them
by what the load made the use of its device grow by. Later only what is more is kept: that it has grown, what it left
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
"""What has grown by this factor since it was told of is told of again."""


@dataclass(frozen=True)
class FootprintSample:
    """Something to be written to the registry."""

    key: FootprintKey
    measured: MeasuredFootprint


class FootprintRecorder:
    """Measures the versions of one server.

    Args:
        accounts: Its ledger and readings.
        footprints: What was measured before; only what is in memory is used.
        sizes: What versions need.
        model_states: What is remembered of each model.
        models: The models that hold memory, as the decisions see them.
        retained_memory: What versions left behind.
        counters: What happened how often.

    Attributes:
        largest_error: By how many bytes a measurement was above its estimate at most.
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
        """Measure a version that has just been proved, unless that was done since its load or cannot be done yet.

        Args:
            model_state: The model.
            prepared: The version.
            seconds: What the proof took.
        """
        if model_state.measured or self._leaves_behind(model_state.model, prepared):
            return []
        model_state.measured = True
        self._sizes.proved(self._size(prepared, model_state.model))
        model_state.load_seconds = (model_state.load_seconds or 0.0) + seconds
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
        """Versions that have grown beyond what is recorded of them."""
        found = []
        for model, known in self._models.items():
            model_state = self._model_states.get(model)
            if model_state is None or not model_state.measured:
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
        """What versions that were unloaded left behind."""
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
        """Whether processes of the version's load before are still there; it is measured when they are gone."""
        instance = self._accounts.instances.get((model, prepared.target.version))
        size = self._size(prepared, model)
        expected = size.key.instances * max(sum(device != HOST for device in size.devices), 1)
        return instance is not None and instance.processes > expected

    def _measure(self, model_state: ModelMemoryState, prepared: PreparedVersion) -> MeasuredFootprint | None:
        size = self._size(prepared, model_state.model)
        own = self._accounts.own_bytes((model_state.model, prepared.target.version), size.devices)
        if own is not None:
            (resident, most), by = own, "processes"
            peak = model_state.load_peak or most
        elif model_state.load_growth:
            resident = peak = max(model_state.load_growth.values())
            most, by = 0, "device"
        else:
            return None
        self._keys[model_state.model, prepared.target.version] = size.key
        return MeasuredFootprint(
            resident, peak, model_state.load_seconds or 0.0, size.estimate.bytes, by, inference_peak_bytes=most
        )
