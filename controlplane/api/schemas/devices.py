"""The devices of the servers."""

from pydantic import BaseModel, Field

from controlplane.domain.devices import ServerDevices


class DeviceList(BaseModel):
    """The devices by server."""

    items: list[ServerDevices] = Field(description="One entry for each server.")
