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
    ok: bool = Field(description="Whether the check passed.")
    message: str = Field(default="", description="Why it failed; empty if it passed.")


class Readiness(BaseModel):
    """Whether the control plane can process requests."""

    model_config = ConfigDict(frozen=True)

    ready: bool = Field(description="Whether every check passed.")
    checks: tuple[Check, ...] = Field(description="The checks.")


class ConverterInfo(BaseModel):
    """One available conversion."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(description="Input format.")
    target: str = Field(description="Output format.")


class Info(BaseModel):
    """A description of this control plane."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(default="triton-control-plane", description="The product's name.")
    version: str = Field(description="Its version.")
    store_url: str = Field(description="URL of the store, without credentials.")
    data_dir: str = Field(description="Folder for the local state of this instance.")
    pid: int = Field(description="Process ID.")
    started_at: datetime = Field(description="Start time (UTC).")
    servers: tuple[ServerStatus, ...] = Field(description="The Triton servers.")
    gateway: GatewayAddress | None = Field(description="The inference gateway; null if there is none.")
    converters: tuple[ConverterInfo, ...] = Field(description="The supported conversions.")
    authentication: Authentication = Field(
        description="on: every request needs an API key; off-loopback: there is no key yet, and only "
        "this machine can reach the port; off-insisted: the settings disable authentication."
    )
    confinement: Confinement = Field(
        description="Isolation of models' code from the control plane: namespace-and-user, namespace or none."
    )
    confinement_warning: str = Field(
        default="", description="Why there is no isolation, and what to do; empty if there is."
    )
    warning: str = Field(default="", description="Warnings for the operator.")


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
                Check(
                    name="gateway", ok=gateway.ready, message="" if gateway.ready else "HAProxy is starting or stopping"
                )
            )
        return Readiness(ready=all(check.ok for check in checks), checks=tuple(checks))

    async def _store(self) -> Check:
        store = self._registry.store
        try:
            await asyncio.wait_for(
                asyncio.to_thread(lambda: list(store.list("models/", limit=1))), _STORE_TIMEOUT_SECONDS
            )
        except TimeoutError:
            return Check(name="store", ok=False, message=f"no response within {_STORE_TIMEOUT_SECONDS:g} s")
        except ControlPlaneError as error:
            return Check(name="store", ok=False, message=error.message)
        return Check(name="store", ok=True)

    def _loop(self) -> Check:
        if not self._reconciler.alive:
            return Check(name="reconciler", ok=False, message="the control loop is not running")
        if not self._reconciler.informed:
            message = "not all deployments have been read since the start, or since the store was last unreachable"
            return Check(name="reconciler", ok=False, message=message)
        return Check(name="reconciler", ok=True)
