"""The devices of Triton servers, as the control plane reports them."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class DeviceKind(StrEnum):
    """Kind of a device."""

    HOST = "host"
    GPU = "gpu"
    MIG = "mig"
    """A slice of a GPU with its own memory (Multi-Instance GPU)."""


class DeviceProcess(BaseModel):
    """A process that uses memory of a device."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int = Field(description="Process id, as seen by the host.")
    bytes: int = Field(description="Memory that the process occupies.")


class Device(BaseModel):
    """One pool of memory of one server; null means "not available here", never zero."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Id of the device, unique on its server.", examples=["host", "gpu:0", "gpu:0/mig:1"])
    kind: DeviceKind = Field(description="Kind of device: the host's memory, a GPU, or a MIG instance of a GPU.")
    uuid: str = Field(default="", description="NVIDIA's UUID; empty for the host.")
    product: str = Field(default="", description="The product's name.")
    device_id: int | None = Field(default=None, description="Triton's number for it (`instance_group.gpus`).")
    allocatable: bool = Field(
        default=True, description="Whether models can be loaded on it; false for a GPU in MIG mode."
    )
    total_bytes: int = Field(description="Total memory; on a host, the container's limit if it is lower.")
    used_bytes: int | None = Field(default=None, description="Memory in use, by any process.")
    free_bytes: int | None = Field(default=None, description="Free memory.")
    budget_bytes: int = Field(description="Memory that models can use (the budget).")
    processes: tuple[DeviceProcess, ...] | None = Field(
        default=None, description="Processes and their memory; on a host only Triton's own processes."
    )
    utilisation: float | None = Field(default=None, description="Share of time in which the device was busy, 0 to 1.")
    temperature_celsius: float | None = Field(default=None, description="Temperature.")
    power_watts: float | None = Field(default=None, description="Power draw.")
    power_limit_watts: float | None = Field(default=None, description="Power limit.")
    ecc_corrected: int | None = Field(default=None, description="Corrected memory errors since the driver started.")
    ecc_uncorrected: int | None = Field(default=None, description="Uncorrected memory errors.")
    throttle_reasons: tuple[str, ...] | None = Field(default=None, description="Reasons why its clocks are reduced.")
    parent: str | None = Field(default=None, description="The GPU to which a MIG instance belongs.")
    error: str = Field(
        default="", description="Why the device cannot be read; its values are then the last known ones."
    )
    lost: bool = Field(default=False, description="Whether the device is unusable until it or the machine is reset.")


class ServerDevices(BaseModel):
    """The devices of one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    observed_at: datetime | None = Field(default=None, description="When the devices were read (UTC); null: never.")
    error: str = Field(default="", description="Why they cannot be read now; the values are then the last known ones.")
    devices: tuple[Device, ...] = Field(default=(), description="The devices.")
