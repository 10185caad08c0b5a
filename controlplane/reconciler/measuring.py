"""What a load measured, and what of it is kept as the version's footprint. Mutable; the steward's own.

A version is measured once for each load, when it was proved: by what its own processes have, or where nobody sees them
by what the load made the use of its device grow by. Later only what is more is kept: that it has grown, what it left
behind.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.memory.types import HOST, ModelMemory
from controlplane.reconciler.accounts import Accounts
from controlplane.reconciler.leftovers import Leftovers
from controlplane.reconciler.sizing import Size, Sizes
from controlplane.reconciler.tenants import Tenant
from controlplane.reconciler.wishes import Prepared
from controlplane.registry.footprints import FootprintKey, Footprints, MeasuredFootprint
from controlplane.triton.statistics import VersionKey

GREW = 1.1
"""What has grown by this factor since it was told of is told of again."""


@dataclass(frozen=True)
class Measurement:
    """Something to be written to the registry."""

    key: FootprintKey
    measured: MeasuredFootprint


class Meter:
    """Measures the versions of one server.

    Args:
        accounts: Its ledger and readings.
        footprints: What was measured before; only what is in memory is used.
        sizes: What versions need.
        tenants: What is remembered of each model.
        models: The models that hold memory, as the decisions see them.
        leftovers: What versions left behind.
        counters: What happened how often.

    Attributes:
        largest_error: By how many bytes a measurement was above its estimate at most.
    """

    def __init__(
        self,
        accounts: Accounts,
        footprints: Footprints,
        sizes: Sizes,
        *,
        tenants: Mapping[str, Tenant],
        models: Mapping[str, ModelMemory],
        leftovers: Leftovers,
        counters: Counter[str],
    ) -> None:
        self.largest_error = 0
        self._accounts = accounts
        self._footprints = footprints
        self._sizes = sizes
        self._tenants = tenants
        self._models = models
        self._leftovers = leftovers
        self._counters = counters
        self._keys: dict[VersionKey, FootprintKey] = {}

    def proved(self, tenant: Tenant, prepared: Prepared, seconds: float) -> list[Measurement]:
        """Measure a version that has just been proved, unless that was done since its load or cannot be done yet.

        Args:
            tenant: The model.
            prepared: The version.
            seconds: What the proof took.
        """
        if tenant.measured or self._leaves_behind(tenant.model, prepared):
            return []
        tenant.measured = True
        self._sizes.proved(self._size(prepared, tenant.model))
        tenant.load_seconds = (tenant.load_seconds or 0.0) + seconds
        measured = self._measure(tenant, prepared)
        if measured is None:
            return []
        size = self._size(prepared, tenant.model)
        error = measured.bytes - size.estimate.bytes
        self._counters["measured"] += 1
        self._counters["estimate_error_bytes"] += abs(error)
        self.largest_error = max(self.largest_error, error)
        return [Measurement(size.key, measured)]

    def grown(self) -> list[Measurement]:
        """Versions that have grown beyond what is recorded of them."""
        found = []
        for model, known in self._models.items():
            tenant = self._tenants.get(model)
            if tenant is None or not tenant.measured:
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
                found.append(Measurement(key, replace(recorded, bytes=resident, inference_peak_bytes=peak)))
        return found

    def left(self) -> list[Measurement]:
        """What versions that were unloaded left behind."""
        found = []
        for version, size in self._leftovers.found().items():
            key = self._keys.get(version)
            recorded = self._footprints.peek(key) if key else None
            if key is not None and recorded is not None:
                found.append(Measurement(key, replace(recorded, left_bytes=size)))
        return found

    def _size(self, prepared: Prepared, model: str) -> Size:
        return self._sizes.of(prepared, model, self._accounts)

    def _leaves_behind(self, model: str, prepared: Prepared) -> bool:
        """Whether processes of the version's load before are still there; it is measured when they are gone."""
        instance = self._accounts.instances.get((model, prepared.target.version))
        size = self._size(prepared, model)
        expected = size.key.instances * max(sum(device != HOST for device in size.devices), 1)
        return instance is not None and instance.processes > expected

    def _measure(self, tenant: Tenant, prepared: Prepared) -> MeasuredFootprint | None:
        size = self._size(prepared, tenant.model)
        own = self._accounts.own_bytes((tenant.model, prepared.target.version), size.devices)
        if own is not None:
            (resident, most), by = own, "processes"
            peak = tenant.load_peak or most
        elif tenant.load_growth:
            resident = peak = max(tenant.load_growth.values())
            most, by = 0, "device"
        else:
            return None
        self._keys[tenant.model, prepared.target.version] = size.key
        return MeasuredFootprint(
            resident, peak, tenant.load_seconds or 0.0, size.estimate.bytes, by, inference_peak_bytes=most
        )
