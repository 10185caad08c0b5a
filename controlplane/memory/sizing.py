"""Expected memory need of a version on a server's devices. Pure, except for the registry's in-memory measurements."""

from dataclasses import dataclass, replace

from controlplane.domain.pipelines import ENSEMBLE
from controlplane.gpu.base import HOST
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.policy.footprint import estimate
from controlplane.memory.policy.types import Footprint, FootprintSource
from controlplane.registry.footprints import FootprintKey, Footprints

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
        self._known: dict[tuple[str, int, tuple[str, ...]], tuple[PreparedVersion, object, Size]] = {}
        self._known_for: object = None
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
        if accounts.topology != self._known_for:
            self._known.clear()
            self._known_for = accounts.topology
        known = self._known.get((model, prepared.target.version, place))
        if known is not None and known[0] is prepared and known[1] is self._footprints.revision(known[2].key):
            size = known[2]
        else:
            size, revision = size_of(prepared, model, accounts, self._footprints, place)
            devices = tuple(name for name in size.devices if accounts.tells_of(name))
            size = size if devices == size.devices else replace(size, devices=devices)
            self._known[model, prepared.target.version, place] = (prepared, revision, size)
        least = max(self._corrected.get(size.key, 0), self._forced.get(size.key, 0))
        if least > size.footprint.reserve_bytes:
            return replace(size, footprint=Footprint(least, 0, FootprintSource.MEASURED, least))
        return size

    def correct(self, size: Size) -> None:
        """Increase the expected need after Triton ran out of memory for it."""
        known = next((one for _, _, one in self._known.values() if one.key == size.key), size)
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
) -> tuple[Size, object]:
    """Return what a version needs: the measurement if there is one, else an estimate.

    Args:
        prepared: The version with its settings.
        model: The model name.
        accounts: The server's devices.
        known: Measurements that are in memory.
        place: The devices that it is placed on; empty for all GPUs, or the host.

    Returns:
        The size, and the revision of its measurement; the size is valid while that is the newest one.
    """
    names, kind = _devices(prepared, accounts, place)
    facts = prepared.facts
    batch, instances = facts.max_batch_size, facts.instances
    key = FootprintKey(model, prepared.target.version, facts.backend, kind, batch, instances)
    revision = known.revision(key)  # before the measurement: a newer one makes the size invalid
    measured = known.peek(key)
    guess = estimate(
        prepared.manifest,
        prepared.settings,
        backend=facts.backend,
        kind=kind,
        instances=instances,
        max_batch_size=batch,
    )
    if measured is None or facts.backend == ENSEMBLE:
        return Size(names, key, guess, guess), revision
    footprint = Footprint(measured.bytes, 0, FootprintSource.MEASURED, measured.most_bytes)
    return Size(names, key, footprint, guess, measured.load_seconds or None), revision


def _devices(prepared: PreparedVersion, accounts: LedgerSync, place: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    facts, gpus = prepared.facts, tuple(gpu.name for gpu in accounts.gpus)
    if not facts.may_use_gpu or (not facts.wants_gpu and (place == (HOST,) or not (place or gpus))):
        return (HOST,), "cpu"
    if facts.named_gpus:
        return accounts.names(facts.named_gpus), "gpu"  # a missing device keeps its name, so that the refusal names it
    return tuple(name for name in place if name != HOST) or gpus or ("gpu:0",), "gpu"


def device_kind(devices: tuple[str, ...], prepared: PreparedVersion, accounts: LedgerSync) -> str:
    """Return what kind of devices these are: ``cpu``, or the products of the GPUs; empty if that is not known.

    Args:
        devices: Names of the devices that the version is loaded on, as far as known.
        prepared: The version. Without readings, only a configuration for the CPU says for sure where it runs.
        accounts: The server's devices.
    """
    if devices == (HOST,):
        return "cpu" if accounts.devices or not prepared.facts.may_use_gpu else ""
    products = {one.name: one.product for one in accounts.devices}
    kinds = {products.get(name, "") for name in devices}
    return ", ".join(sorted(kinds)) if kinds and "" not in kinds else ""
