"""What a version is expected to need on which devices of a server. Pure, but for what the registry has in memory."""

from dataclasses import dataclass, replace

from controlplane.gpu.base import HOST
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.policy.footprint import estimate
from controlplane.memory.policy.types import Footprint, FootprintSource
from controlplane.registry.footprints import FootprintKey, Footprints
from controlplane.triton.instance_groups import may_use_gpu, named_gpus, wants_gpu

_CORRECTION = 1.5
"""What Triton had no memory for is taken to need this much more than was thought."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a version is expected to need.

    Attributes:
        devices: Where it is loaded.
        key: Under which measurements of it are kept.
        footprint: On each of the devices.
        estimate: What was, or would have been, estimated for each.
        load_seconds: What its load took when it was measured; None where nobody measured.
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
    """The sizes of one server's models, with what Triton's refusals have taught. Belongs to one event loop.

    Args:
        footprints: Measurements; only what is in memory is used.
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
            model: The model's name.
            accounts: The server's devices.
            place: The devices it would have its place on; None: those where the model has it.
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
        """Triton had no memory for it."""
        known = next((one for _, one in self._known.values() if one.key == size.key), size)
        thought = known.footprint.reserve_bytes
        self._corrected[size.key] = int(max(thought, self._corrected.get(size.key, 0)) * _CORRECTION)

    def force(self, size: Size, least_bytes: int) -> None:
        """Ask for this much the next time, whatever it needs; 0 for what it needs."""
        self._forced[size.key] = least_bytes

    def proved(self, size: Size) -> None:
        """It is loaded: what it has now counts."""
        self._corrected.pop(size.key, None)
        self._forced.pop(size.key, None)


def size_of(
    prepared: PreparedVersion, model: str, accounts: LedgerSync, known: Footprints, place: tuple[str, ...] = ()
) -> Size:
    """Say what a version needs: measured where somebody measured it, else estimated.

    Args:
        prepared: The version with its settings.
        model: The model's name.
        accounts: The server's devices.
        known: Measurements that are in memory.
        place: The devices that it has its place on; empty: all GPUs, or the host.
    """
    names, kind = _devices(prepared, accounts, place)
    backend = prepared.manifest.format.backend or ""
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
        return accounts.names(named), "gpu"  # one that is not there keeps its name, so that the refusal can say it
    return tuple(name for name in place if name != HOST) or gpus or ("gpu:0",), "gpu"
