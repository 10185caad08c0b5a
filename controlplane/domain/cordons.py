"""Cordons: servers that take no new replicas, and those whose replicas move away."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from controlplane.errors import ConflictError, NotFoundError

CORDONS_MAX = 10_000


class Cordon(BaseModel):
    """An operator's decision that a server takes no new replicas."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    drain: bool = Field(default=False, description="Whether the replicas on the server move to other servers.")
    force: bool = Field(
        default=False, description="Whether replicas that have no place on another server are unloaded."
    )
    reason: str = Field(default="", description="The reason; empty if none was given.")
    at: datetime = Field(description="When it was set (UTC).")
    by: str = Field(description="Who set it.")

    @property
    def sentence(self) -> str:
        """What it does to the server, with the reason."""
        state = "it is being drained" if self.drain else "it is cordoned"
        return f"{state}: {self.reason}" if self.reason else state


class Cordons(BaseModel):
    """The cordons of all servers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    servers: tuple[Cordon, ...] = Field(default=(), description="One entry for each cordoned server.")

    def of(self, server: str) -> Cordon | None:
        """Return the cordon of a server."""
        return next((one for one in self.servers if one.server == server), None)

    def with_(self, cordon: Cordon) -> "Cordons":
        """Return the cordons with one added or replaced.

        Raises:
            ConflictError: There are too many.
        """
        others = tuple(one for one in self.servers if one.server != cordon.server)
        if len(others) >= CORDONS_MAX:
            raise ConflictError(f"the limit of {CORDONS_MAX} cordoned servers is reached; uncordon one first")
        return Cordons(servers=tuple(sorted((*others, cordon), key=lambda one: one.server)))

    def without(self, server: str) -> "Cordons":
        """Return the cordons without the one of a server.

        Raises:
            NotFoundError: The server is not cordoned.
        """
        if self.of(server) is None:
            raise NotFoundError(f"the server {server[:80]!r} is not cordoned", server=server[:80])
        return Cordons(servers=tuple(one for one in self.servers if one.server != server))


class CordonStatus(BaseModel):
    """The cordon of a server, and what it has still to do."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    drain: bool = Field(description="Whether the replicas on the server move to other servers.")
    force: bool = Field(description="Whether replicas that have no place on another server are unloaded.")
    reason: str = Field(default="", description="The reason; empty if none was given.")
    at: datetime = Field(description="When it was set (UTC).")
    by: str = Field(description="Who set it.")
    remaining: tuple[str, ...] = Field(default=(), description="Models that are still on a server that is drained.")
    stuck: dict[str, str] = Field(
        default_factory=dict, description="Why a remaining model has no place on another server, by model."
    )

    @property
    def drained(self) -> bool:
        """Whether the drain is complete."""
        return self.drain and not self.remaining
