"""Expected memory need of a version on a server's devices. Pure, except for the registry's in-memory measurements."""

from dataclasses import dataclass, replace

from controlplane.gpu.base import HOST
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.policy.footprint import estimate
from controlplane.memory.policy.types import Footprint, FootprintSource
from controlplane.registry.footprints import FootprintKey, Footprints
from controlplane.triton.instance_groups import may_use_gpu, named_gpus, wants_gpu

_CORRECTION = 1.5
"""Factor applied to the expected need after Triton ran out of memory."""


@dataclass(frozen=True, slots=True)
class Size:
    """Expected need of a version.

    Attributes:
        devices: Where it is loaded.
        key: The key of its measurements.
        footprint: The footprint on each of the devices.
        estimate: The estimate for each device, whether or not it is used.
        load_seconds: The measured duration of its load; None without a measurement.
    """

    devices: tuple[str, ...]
    key: FootprintKey
    footprint: Footprint
    estimate: Footprint
    load_seconds: float | None = None

    @property
    def by_device(self) -> dict[str, Footprint]:
        """The footprint on each device."""
        return dict.fromkeys(self.devices, self.footprint)


class FootprintResolver:
    """Sizes of one server's models, corrected by Triton's refusals. Belongs to one event loop.

    Args:
        footprints: Measurements; only those in memory are used.
    """

    def __init__(self, footprints: Footprints) -> None:
        self._footprints = footprints
        self._corrected: dict[FootprintKey, int] = {}
        self._forced: dict[FootprintKey, int] = {}
        self._known: dict[tuple[str, int, tuple[str, ...]], tuple[PreparedVersion, Size]] = {}
        self._known_for: tuple[object, ...] = ()
        self.places: dict[str, tuple[str, ...]] = {}

    def of(
        self, prepared: PreparedVersion, model: str, accounts: LedgerSync, place: tuple[str, ...] | None = None
    ) -> Size:
        """Return a version's size.

        Args:
            prepared: The version with its settings.
            model: The model name.
            accounts: The server's devices.
            place: The devices to place it on; None for the devices that the model is placed on.
        """
        place = self.places.get(model, ()) if place is None else place
        state = (self._footprints.changes, accounts.topology)
        if state != self._known_for:
            self._known.clear()
            self._known_for = state
        known = self._known.get((model, prepared.target.version, place))
        if known is not None and known[0] is prepared:
            size = known[1]
        else:
            size = size_of(prepared, model, accounts, self._footprints, place)
            size = replace(size, devices=tuple(name for name in size.devices if accounts.tells_of(name)))
            self._known[model, prepared.target.version, place] = (prepared, size)
        least = max(self._corrected.get(size.key, 0), self._forced.get(size.key, 0))
        if least > size.footprint.reserve_bytes:
            return replace(size, footprint=Footprint(least, 0, FootprintSource.MEASURED, least))
        return size

    def correct(self, size: Size) -> None:
        """Increase the expected need after Triton ran out of memory for it."""
        known = next((one for _, one in self._known.values() if one.key == size.key), size)
        thought = known.footprint.reserve_bytes
        self._corrected[size.key] = int(max(thought, self._corrected.get(size.key, 0)) * _CORRECTION)

    def force(self, size: Size, least_bytes: int) -> None:
        """Reserve at least this many bytes for the next load, whatever it needs; 0 removes the minimum."""
        self._forced[size.key] = least_bytes

    def proved(self, size: Size) -> None:
        """Drop the corrections once the version is loaded: its actual size counts from now on."""
        self._corrected.pop(size.key, None)
        self._forced.pop(size.key, None)


def size_of(
    prepared: PreparedVersion, model: str, accounts: LedgerSync, known: Footprints, place: tuple[str, ...] = ()
) -> Size:
    """Return what a version needs: the measurement if there is one, else an estimate.

    Args:
        prepared: The version with its settings.
        model: The model name.
        accounts: The server's devices.
        known: Measurements that are in memory.
        place: The devices that it is placed on; empty for all GPUs, or the host.
    """
    names, kind = _devices(prepared, accounts, place)
    backend = prepared.manifest.backend
    instances = _instances(prepared)
    batch = int(prepared.config.get("max_batch_size", 0))
    key = FootprintKey(model, prepared.target.version, backend, kind, batch, instances)
    guess = estimate(
        prepared.manifest, prepared.settings, backend=backend, kind=kind, instances=instances, max_batch_size=batch
    )
    measured = known.peek(key)
    if measured is None:
        return Size(names, key, guess, guess)
    footprint = Footprint(measured.bytes, 0, FootprintSource.MEASURED, measured.most_bytes)
    return Size(names, key, footprint, guess, measured.load_seconds or None)


def _instances(prepared: PreparedVersion) -> int:
    groups = prepared.config.get("instance_group") or [{}]
    return sum(int(group.get("count", 1)) for group in groups)


def _devices(prepared: PreparedVersion, accounts: LedgerSync, place: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    config, gpus = prepared.config, tuple(gpu.name for gpu in accounts.gpus)
    if not may_use_gpu(config) or (not wants_gpu(config) and (place == (HOST,) or not (place or gpus))):
        return (HOST,), "cpu"
    if named := named_gpus(config):
        return accounts.names(named), "gpu"  # a missing device keeps its name, so that the refusal can name it
    return tuple(name for name in place if name != HOST) or gpus or ("gpu:0",), "gpu"


def device_kind(devices: tuple[str, ...], prepared: PreparedVersion, accounts: LedgerSync) -> str:
    """Return what kind of devices these are: ``cpu``, or the products of the GPUs; empty if that is not known.

    Args:
        devices: Names of the devices that the version is loaded on, as far as known.
        prepared: The version. Without readings, only a configuration for the CPU says for sure where it runs.
        accounts: The server's devices.
    """
    if devices == (HOST,):
        return "cpu" if accounts.devices or not may_use_gpu(prepared.config) else ""
    products = {one.name: one.product for one in accounts.devices}
    kinds = {products.get(name, "") for name in devices}
    return ", ".join(sorted(kinds)) if kinds and "" not in kinds else ""
