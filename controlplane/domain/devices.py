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

    pid: int = Field(description="Its process id, as the machine's own processes see it.")
    bytes: int = Field(description="What it holds.")


class Device(BaseModel):
    """One pool of memory of one server; null means "not available here", never zero."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Unique on its server.", examples=["host", "gpu:0", "gpu:0/mig:1"])
    kind: DeviceKind = Field(description="The host's memory, a GPU, or a MIG instance of one.")
    uuid: str = Field(default="", description="NVIDIA's UUID; empty for the host.")
    product: str = Field(default="", description="The product's name.")
    device_id: int | None = Field(default=None, description="Triton's number for it (`instance_group.gpus`).")
    allocatable: bool = Field(default=True, description="Whether models can be loaded on it; not on a GPU in MIG mode.")
    total_bytes: int = Field(description="What may be had at most; on a host the container's limit where it is less.")
    used_bytes: int | None = Field(default=None, description="What cannot be had any more, whoever uses it.")
    free_bytes: int | None = Field(default=None, description="What can still be had.")
    budget_bytes: int = Field(description="What models may use of it.")
    processes: tuple[DeviceProcess, ...] | None = Field(
        default=None, description="Who holds how much; on a host Triton's own processes alone."
    )
    utilisation: float | None = Field(default=None, description="Share of the time that it works, 0 to 1.")
    temperature_celsius: float | None = Field(default=None, description="Its temperature.")
    power_watts: float | None = Field(default=None, description="What it draws.")
    power_limit_watts: float | None = Field(default=None, description="What it may draw.")
    ecc_corrected: int | None = Field(default=None, description="Memory errors corrected since its driver started.")
    ecc_uncorrected: int | None = Field(default=None, description="Memory errors that could not be corrected.")
    throttle_reasons: tuple[str, ...] | None = Field(default=None, description="Why its clocks are lowered.")
    parent: str | None = Field(default=None, description="The GPU that a MIG instance is part of.")
    error: str = Field(default="", description="Why it cannot be read; the figures are then what was last known.")
    lost: bool = Field(default=False, description="Whether it is gone until somebody resets it or the machine.")


class ServerDevices(BaseModel):
    """The devices of one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    observed_at: datetime | None = Field(default=None, description="When they were read (UTC); null: never yet.")
    error: str = Field(default="", description="Why they cannot be read now; they are then as last seen.")
    devices: tuple[Device, ...] = Field(default=(), description="The devices.")
