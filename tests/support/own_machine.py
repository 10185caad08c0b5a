"""A host's memory, as if each server of a test had a machine of its own."""

from dataclasses import replace

from controlplane.gpu.base import DeviceReading
from controlplane.gpu.host import HostSource


class OwnMachine(HostSource):
    """What the other servers of a test use, and what else runs, is not on it."""

    def read(self) -> tuple[DeviceReading, ...]:
        (host,) = super().read()
        return (replace(host, used_bytes=sum((host.processes or {}).values())),)
