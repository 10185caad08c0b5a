"""Reads the GPUs of this machine and their MIG instances through NVML (the driver's ``libnvidia-ml.so.1``).

Without that library or without a driver there are no GPUs, which is not an error. Calls may block for seconds while a
GPU fails; callers wait in a thread.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pynvml

from controlplane.errors import DeviceError
from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.gpu.nvml_device import LOST, Handle, mig_handles, optional, read_facts

logger = logging.getLogger(__name__)

_NONE_HERE = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_MIG_PREFIX = "MIG-"


@dataclass(frozen=True, slots=True)
class _Known:
    """The last known state of a device, used while it does not answer.

    Attributes:
        index: NVML's number of the GPU when it was last seen.
        reading: The last reading without an error.
    """

    index: int
    reading: DeviceReading


class NvmlSource:
    """Reads GPUs through NVML, which is opened at the first reading, and again after a failure.

    A GPU is named ``gpu:N`` after the number it had when it was first seen, in the order of the PCI bus. It keeps this
    name, although NVML renumbers the GPUs when one falls off the bus. CUDA uses that order only with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; if that is not set, or the server does not use all GPUs, pass ``uuids``.

    Args:
        uuids: The GPUs or MIG instances that the server uses, in the order of its device numbers, by UUID or its
            beginning, as in ``CUDA_VISIBLE_DEVICES``. Empty means all.
    """

    def __init__(self, uuids: Sequence[str] = ()) -> None:
        self._uuids = tuple(uuids)
        self._lock = threading.Lock()
        self._opened = False
        self._known: dict[str, _Known] = {}

    def read(self) -> tuple[DeviceReading, ...]:
        """Read every GPU and every MIG instance.

        Raises:
            DeviceError: NVML is installed and does not work, and no GPU was ever seen.
        """
        with self._lock:
            try:
                self._open()
                count = pynvml.nvmlDeviceGetCount()
            except pynvml.NVMLError as error:
                self._close()
                return self._selected(list(self._without_nvml(error)))
            readings = [reading for index in range(count) for reading in self._gpu(index)]
            readings.extend(self._gone(readings))
            # Numbers may have changed: of two readings with the same name the one without an error counts.
            by_name = {reading.name: reading for reading in sorted(readings, key=lambda one: one.error == "")}
            return self._selected(sorted(by_name.values(), key=lambda reading: _order(reading.name)))

    def close(self) -> None:
        """Shut NVML down if this source opened it."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        if not self._opened:
            pynvml.nvmlInit()
            self._opened = True

    def _close(self) -> None:
        if self._opened:
            self._opened = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                logger.debug("failed to shut down NVML: %s", error)

    def _without_nvml(self, error: pynvml.NVMLError) -> Iterator[DeviceReading]:
        if error.value not in _NONE_HERE and not self._known:
            raise DeviceError(
                f"the GPUs of this machine cannot be read: NVML reports {str(error)!r}; run `nvidia-smi` for details",
                code=error.value,
            ) from error
        for known in self._known.values():
            yield _failed(known.reading, error)

    def _gpu(self, index: int) -> Iterator[DeviceReading]:
        """Yield the GPU with this number and its MIG instances."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            yield from self._unreachable(index, error)
            return
        name = self._name_of(uuid, index)
        empty = DeviceReading(
            name=name,
            kind=DeviceKind.GPU,
            total_bytes=0,
            used_bytes=None,
            uuid=uuid,
            device_id=_number(name),
        )
        try:
            instances = mig_handles(handle)
        except pynvml.NVMLError as error:
            yield from self._unreachable(index, error, name)
            return
        yield self._device(index, handle, replace(empty, allocatable=instances is None))
        present = set()
        for number, instance in instances or ():
            name_of_instance = f"{name}/mig:{number}"
            present.add(name_of_instance)
            yield self._device(
                index,
                instance,
                replace(empty, name=name_of_instance, kind=DeviceKind.MIG, uuid="", device_id=None, parent=name),
            )
        # The GPU was partitioned differently: instances that no longer exist are not lost devices.
        for gone in [key for key, known in self._known.items() if known.reading.parent == name and key not in present]:
            del self._known[gone]

    def _device(self, index: int, handle: Handle, empty: DeviceReading) -> DeviceReading:
        try:
            facts = read_facts(handle)
            reading = replace(
                empty,
                uuid=empty.uuid or optional(pynvml.nvmlDeviceGetUUID, handle) or "",
                product=optional(pynvml.nvmlDeviceGetName, handle) or "",
                total_bytes=facts.total_bytes,
                used_bytes=facts.used_bytes,
                processes=facts.processes,
                utilisation=facts.utilisation,
                temperature_celsius=facts.temperature_celsius,
                power_watts=facts.power_watts,
                power_limit_watts=facts.power_limit_watts,
                ecc_corrected=facts.ecc_corrected,
                ecc_uncorrected=facts.ecc_uncorrected,
                throttle_reasons=facts.throttle_reasons,
            )
        except pynvml.NVMLError as error:
            known = self._known.get(empty.name)
            return _failed(known.reading if known else empty, error)
        self._known[reading.name] = _Known(index, reading)
        return reading

    def _unreachable(self, index: int, error: pynvml.NVMLError, name: str = "") -> Iterator[DeviceReading]:
        """Yield the last known state of a GPU without a handle, and of its instances."""
        name = name or next(
            (key for key, known in self._known.items() if known.index == index and known.reading.parent is None),
            f"gpu:{index}",
        )
        known = self._known.get(name)
        yield _failed(
            known.reading if known else DeviceReading(name, DeviceKind.GPU, 0, None, device_id=_number(name)), error
        )
        for other in self._known.values():
            if other.reading.parent == name:
                yield _failed(other.reading, error)

    def _gone(self, readings: list[DeviceReading]) -> Iterator[DeviceReading]:
        """Yield the GPUs, and their instances, that NVML no longer lists."""
        there = {reading.name for reading in readings}
        for name, known in self._known.items():
            if name not in there:
                yield _failed(known.reading, None)

    def _name_of(self, uuid: str, index: int) -> str:
        taken = set()
        for name, known in self._known.items():
            if known.reading.uuid == uuid:
                return name
            taken.add(name)
        while f"gpu:{index}" in taken:
            index += 1
        return f"gpu:{index}"

    def _selected(self, readings: list[DeviceReading]) -> tuple[DeviceReading, ...]:
        """Return the readings of the server's devices, with the server's own numbers."""
        if not self._uuids:
            # With a GPU in MIG mode, CUDA sees only one instance, and it cannot be known which one.
            mixed = any(reading.kind is DeviceKind.MIG or not reading.allocatable for reading in readings)
            return tuple(replace(reading, device_id=None) if mixed else reading for reading in readings)
        chosen = []
        for number, uuid in enumerate(self._uuids):
            mine = next((one for one in readings if _begins(one.uuid, uuid)), None)
            if mine is None:
                kind = DeviceKind.MIG if _begins(uuid, _MIG_PREFIX) else DeviceKind.GPU
                error = f"this machine has no GPU with the UUID {uuid!r}; `nvidia-smi -L` lists its GPUs"
                chosen.append(DeviceReading(uuid, kind, 0, None, uuid=uuid, device_id=number, error=error, lost=True))
                continue
            chosen.append(replace(mine, device_id=number if mine.allocatable else None))
            chosen.extend(reading for reading in readings if reading.parent == mine.name)
        return tuple({reading.name: reading for reading in chosen}.values())


def _failed(last: DeviceReading, error: pynvml.NVMLError | None) -> DeviceReading:
    """Return the reading of a device that cannot be read: it keeps the identity, but not the measured values."""
    why = "NVML no longer lists it" if error is None else f"NVML reports {str(error)!r}"
    return DeviceReading(
        name=last.name,
        kind=last.kind,
        total_bytes=last.total_bytes,
        used_bytes=None,
        uuid=last.uuid,
        product=last.product,
        device_id=last.device_id,
        allocatable=last.allocatable,
        parent=last.parent,
        error=why,
        lost=error is None or error.value in LOST,
    )


def _begins(text: str, start: str) -> bool:
    return text.casefold().startswith(start.casefold())


def _number(name: str) -> int:
    return int(name.partition(":")[2])


def _order(name: str) -> tuple[int, ...]:
    """Return the sort key of a name such as ``gpu:2/mig:10``: its numbers."""
    return tuple(int(part.partition(":")[2]) for part in name.split("/"))
