"""Combines several device sources into the one source of a Triton server."""

import logging
from collections.abc import Iterable

from controlplane.errors import DeviceError
from controlplane.gpu.base import DeviceReading, DeviceSource

logger = logging.getLogger(__name__)


class CombinedSource:
    """Reads several sources; a source that fails does not affect the others.

    Devices keep the order of their sources. If two sources have a device of the same name, the reading of the first
    source counts.
    """

    def __init__(self, sources: Iterable[DeviceSource]) -> None:
        self._sources = tuple(sources)
        self._failed: dict[int, str] = {}

    def read(self) -> tuple[DeviceReading, ...]:
        """Read every source.

        Raises:
            DeviceError: All of them failed.
        """
        readings: dict[str, DeviceReading] = {}
        problems = []
        for number, source in enumerate(self._sources):
            try:
                found = source.read()
            except DeviceError as error:
                problems.append(error)
                if self._failed.get(number) != error.message:  # logged once per cause, not once per reading
                    logger.warning("devices cannot be read: %s", error.message)
                self._failed[number] = error.message
                continue
            if self._failed.pop(number, None) is not None:
                logger.info("devices can be read again: %s", ", ".join(reading.name for reading in found) or "none")
            for reading in found:
                readings.setdefault(reading.name, reading)
        if problems and len(problems) == len(self._sources):
            raise DeviceError("; ".join(error.message for error in problems)) from problems[0]
        return tuple(readings.values())

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()
