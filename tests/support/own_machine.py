"""Host memory readings as if each server of a test had its own machine."""

from dataclasses import replace

from controlplane.gpu.base import DeviceReading
from controlplane.gpu.host import HostSource


class OwnMachine(HostSource):
    """A machine without the memory use of other servers and processes."""

    def read(self) -> tuple[DeviceReading, ...]:
        (host,) = super().read()
        return (replace(host, used_bytes=sum((host.processes or {}).values())),)
