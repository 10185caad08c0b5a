"""Memory use by model and its reasons, load plans, and loads that a caller waits for."""

import asyncio

from controlplane.domain.access import Principal
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    DeploymentFailedError,
    InsufficientMemoryError,
    NotFoundError,
)
from controlplane.memory.views import ExplanationView, LoadPlanView, ServerExplanation, ServerMemory
from controlplane.reconciler.controller import Reconciler
from controlplane.services.deployments import Deployment, Deployments

_LOOK_SECONDS = 0.02
_ADOPT_SECONDS = 10.0
"""Maximum time until the reconciler of this process has adopted a revision that was just written."""


class Memory:
    """Use cases for the memory of the servers. Used from one event loop."""

    def __init__(self, deployments: Deployments, reconciler: Reconciler) -> None:
        self._deployments = deployments
        self._reconciler = reconciler

    def servers(self) -> tuple[ServerMemory, ...]:
        """Return the ledgers of all servers."""
        return self._reconciler.memory()

    def of(self, server: str) -> ServerMemory:
        """Return the ledger of one server.

        Raises:
            NotFoundError: No server has this name.
        """
        found = self._reconciler.memory()
        for one in found:
            if one.server == server:
                return one
        have = ", ".join(one.server for one in found) or "none"
        raise NotFoundError(f"unknown server {server[:80]!r}; the servers are: {have}", server=server[:80])

    async def why(self, model: str) -> ExplanationView:
        """Return the explanation of a model's state and placement.

        Raises:
            NotFoundError: The model is not deployed.
        """
        await self._deployments.get(model)
        return self._reconciler.why(model) or ExplanationView(model=model, servers=())

    async def plan_deploy(
        self, model: str, reference: str, settings: DeploymentSettings | None, *, asker: Principal | None
    ) -> LoadPlanView:
        """Return what deploying a version would do. Changes nothing.

        Raises:
            InvalidInputError: It cannot be deployed with these settings.
            ForbiddenError: The settings need the scope `code`.
            NotFoundError: The version does not exist.
        """
        entry, settings = await self._deployments.check(model, reference, settings, asker=asker)
        return await self._reconciler.plan_load(model, entry.number, settings)

    async def plan_load(self, model: str) -> LoadPlanView:
        """Return what loading a deployed model would do. Changes nothing.

        Raises:
            NotFoundError: The model is not deployed.
        """
        deployment = await self._deployments.get(model)
        return await self._reconciler.plan_load(model, deployment.spec.version, deployment.spec.settings)

    async def load(self, model: str, *, wait_seconds: float, actor: str, reason: str) -> tuple[Deployment, bool]:
        """Request the load of a deployed model: after an `unload`, an eviction, or for its first use.

        Any number of calls share one load, and each counts as a use. A deployment whose desired state is unloaded
        changes to loaded.

        Returns:
            The deployment, and whether a version of it is active by now.

        Raises:
            NotFoundError: The model is not deployed.
            InsufficientMemoryError: No device has room for it; raised, like the next one, only for a call that waits.
            DeploymentFailedError: It cannot be loaded for another reason.
        """
        deployment = await self._deployments.get(model)
        if not deployment.spec.loaded:
            deployment = await self._deployments.set_loaded(model, loaded=True, actor=actor, reason=reason)
        status = await self.demand(model, deployment.revision, wait_seconds=wait_seconds)
        return await self._deployments.get(model), status.phase in {Phase.READY, Phase.DEGRADED}

    async def demand(self, model: str, revision: int, *, wait_seconds: float) -> DeploymentStatus:
        """Request the load of a model, and wait for it at most ``wait_seconds``; 0 does not wait.

        Raises:
            NotFoundError: The model is not deployed (any more).
            ConflictError: Its desired state is unloaded.
            InsufficientMemoryError: No device has room for it; raised, like the next one, only for a call that waits.
            DeploymentFailedError: It cannot be loaded for another reason.
        """
        await self._adopted(model, revision)
        status = await self._reconciler.wait_loaded(model, wait_seconds)
        if wait_seconds > 0 and status.phase is Phase.FAILED:
            raise self._failure(model, status)
        if wait_seconds > 0 and status.phase is Phase.UNLOADED:
            raise ConflictError(f"{model} was not loaded: {status.message or 'it was unloaded again'}", model=model)
        return status

    async def _adopted(self, model: str, revision: int) -> None:
        """Wait until the reconciler of this process knows a revision; before that, it would refuse a demand."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ADOPT_SECONDS
        while loop.time() < deadline:
            status = self._reconciler.status(model)
            if status is not None and status.revision >= revision:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _failure(self, model: str, status: DeploymentStatus) -> ControlPlaneError:
        message = f"{model} cannot be loaded: {status.message or 'no reason was given'}"
        why = self._reconciler.why(model)
        short = [one for one in why.servers if _is_short(one)] if why else []
        if not short:
            return DeploymentFailedError(message, model=model, phase=status.phase.value)
        return InsufficientMemoryError(
            message,
            model=model,
            servers=[
                one.model_dump(mode="json", include={"server", "needed", "free", "could_be_freed", "holders"})
                for one in short
            ],
        )


def _is_short(one: ServerExplanation) -> bool:
    return one.model.state == "failed" and any(size > one.free.get(device, 0) for device, size in one.needed.items())
