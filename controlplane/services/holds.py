"""Clients' holds, each of which loads a model and keeps it loaded."""

import asyncio
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.states import Phase
from controlplane.errors import ConflictError, ControlPlaneError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.holds import MAX_SECONDS, ModelHold, ModelHolds
from controlplane.services.deployments import Deployments
from controlplane.services.memory import Memory


class Hold(BaseModel):
    """A client's claim on a model: until it expires, the model is loaded and not evicted."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "0b9f6a4c1d2e4f5a8b7c6d5e4f3a2b1c",
                    "model": "resnet",
                    "holder": "nightly-batch",
                    "ttl_seconds": 300,
                    "expires_at": "2026-11-23T23:12:34.660423Z",
                    "ready": True,
                    "message": "version 1 answers",
                }
            ]
        },
    )

    id: str = Field(description="Identifier of the hold, to release or renew it.")
    model: str = Field(description="The held model.")
    holder: str = Field(description="Who holds it.")
    ttl_seconds: float = Field(description="The time to live that was last requested.")
    expires_at: datetime = Field(description="When the hold ends unless it is renewed (UTC).")
    ready: bool = Field(description="Whether the model is active now; false while it is being loaded.")
    message: str = Field(description="Status of the model, as one sentence.")

    @classmethod
    def of(cls, hold: ModelHold, *, ready: bool, message: str) -> Self:
        """Describe a hold and the state of its model."""
        return cls(
            id=hold.id,
            model=hold.model,
            holder=hold.holder,
            ttl_seconds=hold.seconds,
            expires_at=hold.expires_at,
            ready=ready,
            message=message,
        )


class Holds:
    """Use cases for client holds. Used from one event loop."""

    def __init__(self, holds: ModelHolds, deployments: Deployments, memory: Memory, reconciler: Reconciler) -> None:
        self._holds = holds
        self._deployments = deployments
        self._memory = memory
        self._reconciler = reconciler

    async def take(self, model: str, *, ttl_seconds: float, holder: str, wait_seconds: float) -> Hold:
        """Hold a model, so that it is loaded; with ``wait_seconds``, return when it is ready to answer.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: Its desired state is unloaded.
            InvalidInputError: The time to live is too long.
            InsufficientMemoryError: No device has room for it; raised, like the next one, only for a call that waits.
                The hold is released.
            DeploymentFailedError: It cannot be loaded for another reason. The hold is released.
        """
        deployment = await self._deployments.get(model)
        if not deployment.spec.loaded:
            raise ConflictError(
                f"{model} is deployed as unloaded, so it cannot be held; run first: tritonctl load {model}",
                model=model,
            )
        # The time to live starts at the response: a load may take longer than it, and must not be wasted.
        first = min(ttl_seconds + wait_seconds, MAX_SECONDS)
        hold = await asyncio.to_thread(self._holds.acquire, model, seconds=first, holder=holder)
        self._reconciler.lease_changed(hold)
        try:
            await self._memory.demand(model, deployment.revision, wait_seconds=wait_seconds)
        except (ControlPlaneError, asyncio.CancelledError):
            await self._drop(hold)
            raise
        if wait_seconds == 0:
            return self._describe(hold)
        return await self.renew(model, hold.id, ttl_seconds=ttl_seconds)

    async def renew(self, model: str, hold_id: str, *, ttl_seconds: float) -> Hold:
        """Extend a hold to this time from now.

        Raises:
            NotFoundError: It has ended; the client must take a new one.
            InvalidInputError: The time to live is too long.
        """
        hold = await asyncio.to_thread(self._holds.renew, model, hold_id, seconds=ttl_seconds)
        self._reconciler.lease_changed(hold)
        return self._describe(hold)

    async def get(self, model: str, hold_id: str) -> Hold:
        """Return a hold.

        Raises:
            NotFoundError: The hold does not exist or has ended.
        """
        return self._describe(await asyncio.to_thread(self._holds.get, model, hold_id))

    async def list(self, model: str) -> tuple[Hold, ...]:
        """Return a model's holds, the earliest expiry first.

        Raises:
            NotFoundError: The model is not deployed.
        """
        await self._deployments.get(model)
        return tuple(self._describe(one) for one in await asyncio.to_thread(self._holds.list, model))

    async def give_back(self, model: str, hold_id: str) -> None:
        """Release a hold. A hold that has already ended is not an error.

        Raises:
            NotFoundError: It never existed, or ended long ago.
        """
        try:
            hold = await asyncio.to_thread(self._holds.get, model, hold_id)
        except ControlPlaneError:
            await asyncio.to_thread(self._holds.release, model, hold_id)
            return
        await self._drop(hold)

    async def _drop(self, hold: ModelHold) -> None:
        await asyncio.shield(asyncio.to_thread(self._holds.release, hold.model, hold.id))
        self._reconciler.lease_changed(hold.released())

    def _describe(self, hold: ModelHold) -> Hold:
        status = self._reconciler.status(hold.model)
        ready = status is not None and status.phase in {Phase.READY, Phase.DEGRADED}
        return Hold.of(hold, ready=ready, message=status.message if status else "not observed yet")
