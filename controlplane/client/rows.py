"""The part of a deployment that a list shows: fewer and smaller models are imported and parsed for it."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RowSettings(_Part):
    """Settings of a deployment."""

    mode: str


class RowSpec(_Part):
    """The desired state."""

    version: int
    reference: str
    settings: RowSettings


class RowProof(_Part):
    """The newest proof of a version on a server."""

    samples: int
    agrees: bool
    latency_seconds: float


class RowServer(_Part):
    """The state on one server."""

    serving_version: int | None = None
    loaded_versions: tuple[int, ...] = ()
    proof: RowProof | None = None


class RowStatus(_Part):
    """The state on all servers."""

    phase: str
    message: str = ""
    servers: tuple[RowServer, ...] = ()


class RowFootprint(_Part):
    """The memory on one device."""

    held_bytes: int = 0


class RowMemory(_Part):
    """The memory on one server."""

    footprint: tuple[RowFootprint, ...] = ()
    last_used_at: datetime | None = None
    held_until: datetime | None = None
    expires_at: datetime | None = None

    @property
    def held_bytes(self) -> int:
        """What it holds on all devices."""
        return sum(one.held_bytes for one in self.footprint)


class DeploymentRow(_Part):
    """One deployment in a list. See `client.models.Deployment` for all of it."""

    model: str
    at: datetime
    spec: RowSpec
    status: RowStatus | None = None
    memory: tuple[RowMemory, ...] = ()
