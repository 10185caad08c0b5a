"""The control plane's readiness and description."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.states import ServerState, ServerStatus
from controlplane.errors import ControlPlaneError
from controlplane.gateway.views import GatewayAddress
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.sandbox import Confinement, Sandbox
from controlplane.services.gateway import GatewayService
from controlplane.services.keys import Authentication, Keys

_STORE_TIMEOUT_SECONDS = 5.0


class Check(BaseModel):
    """One readiness check."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="store, reconciler, gateway, or server NAME.")
    ok: bool = Field(description="Whether it works.")
    message: str = Field(default="", description="Why it does not.")


class Readiness(BaseModel):
    """Whether the control plane can process requests."""

    model_config = ConfigDict(frozen=True)

    ready: bool = Field(description="Whether every check passed.")
    checks: tuple[Check, ...] = Field(description="The checks.")


class ConverterInfo(BaseModel):
    """One available conversion."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(description="The format it reads.")
    target: str = Field(description="The format it makes.")


class Info(BaseModel):
    """A description of this control plane."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(default="triton-control-plane", description="The product's name.")
    version: str = Field(description="Its version.")
    store_url: str = Field(description="Where the registry lives, without credentials.")
    data_dir: str = Field(description="Where this instance keeps what is its own.")
    pid: int = Field(description="The process.")
    started_at: datetime = Field(description="Since when (UTC).")
    servers: tuple[ServerStatus, ...] = Field(description="The Triton servers.")
    gateway: GatewayAddress | None = Field(description="The gateway for inference; null where there is none.")
    converters: tuple[ConverterInfo, ...] = Field(description="The conversions there are.")
    authentication: Authentication = Field(
        description="on: every request needs an API key; off-loopback: there is no key yet, and only this machine "
        "reaches the port; off-insisted: the settings turned it off."
    )
    confinement: Confinement = Field(
        description="What separates models' code from the control plane: namespace-and-user, namespace or none."
    )
    confinement_warning: str = Field(default="", description="Why nothing does, and what to do; empty elsewhere.")
    warning: str = Field(default="", description="What whoever runs this should know; empty where there is nothing.")


def version() -> str:
    """Return this package's version."""
    try:
        return metadata.version("triton-control-plane")
    except metadata.PackageNotFoundError:
        return "unknown"


class Health:
    """Reports the health of the control plane."""

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        data_dir: Path,
        converters: Sequence[ConverterInfo],
        keys: Keys,
        gateway: GatewayService,
        sandbox: Sandbox,
    ) -> None:
        self._sandbox = sandbox
        self._registry = registry
        self._reconciler = reconciler
        self._data_dir = data_dir
        self._converters = tuple(converters)
        self._keys = keys
        self._gateway = gateway
        self._started_at = datetime.now(UTC)

    def info(self) -> Info:
        """Return a description of this control plane."""
        return Info(
            version=version(),
            store_url=self._registry.store.url,
            data_dir=str(self._data_dir),
            pid=os.getpid(),
            started_at=self._started_at,
            servers=self._reconciler.servers(),
            gateway=self._gateway.address(),
            converters=self._converters,
            authentication=self._keys.authentication,
            warning=self._keys.warning,
            confinement=self._sandbox.confinement,
            confinement_warning=self._sandbox.warning,
        )

    async def readiness(self) -> Readiness:
        """Run the readiness checks."""
        checks = [await self._store(), self._loop()]
        checks += [
            Check(
                name=f"server {server.name}",
                ok=server.state is ServerState.READY and server.driven,
                message=server.message,
            )
            for server in self._reconciler.servers()
        ]
        if (gateway := self._gateway.address()) is not None:
            checks.append(
                Check(name="gateway", ok=gateway.ready, message="" if gateway.ready else "HAProxy is being started")
            )
        return Readiness(ready=all(check.ok for check in checks), checks=tuple(checks))

    async def _store(self) -> Check:
        store = self._registry.store
        try:
            await asyncio.wait_for(
                asyncio.to_thread(lambda: list(store.list("models/", limit=1))), _STORE_TIMEOUT_SECONDS
            )
        except TimeoutError:
            return Check(name="store", ok=False, message=f"no answer within {_STORE_TIMEOUT_SECONDS:g} s")
        except ControlPlaneError as error:
            return Check(name="store", ok=False, message=error.message)
        return Check(name="store", ok=True)

    def _loop(self) -> Check:
        if not self._reconciler.alive:
            return Check(name="reconciler", ok=False, message="the loop does not run")
        if not self._reconciler.informed:
            message = "not all deployments have been read since the start, or since the store was last out of reach"
            return Check(name="reconciler", ok=False, message=message)
        return Check(name="reconciler", ok=True)
