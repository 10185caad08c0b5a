"""Deployments: recording the desired state, and reporting how far the reconciler has come."""

import asyncio
import fnmatch
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

from pydantic import BaseModel, ConfigDict, Field

from controlplane import tracing
from controlplane.domain.access import Principal
from controlplane.domain.conditions import Awaited, Condition
from controlplane.domain.deployment import Applied, DeploymentSettings, DeploymentSpec
from controlplane.domain.health import ServerHealth
from controlplane.domain.model import VersionEntry
from controlplane.domain.names import Reference, validate_model_name
from controlplane.domain.portability import ModelFacts
from controlplane.domain.rollout.decision import RolloutAction, RolloutDecision, apply, deploy
from controlplane.domain.rollout.rollback import pinned, rollback_revision
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import CommitConflictError, ConflictError, InvalidConfigError, InvalidInputError, NotFoundError
from controlplane.memory.views import ModelMemoryView
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.services.deployment_checks import DeploymentChecks
from controlplane.services.deployment_operations import OPERATION_PREFIX, describe_operation, parse_operation
from controlplane.services.operations import Operation
from controlplane.services.pipelines import PipelineChecks
from controlplane.services.portability import Portability

_COMMIT_TRIES = 8
_LOOK_SECONDS = 0.1
"""Interval at which a wait checks whether the deployment is settled; a settled deployment ends the wait immediately."""
_ROLLBACK_SEARCHES = 1000
_SCANNED_AT_ONCE = 500


class DeploymentMemory(ModelMemoryView):
    """The memory of a deployed model on one server: size, load time, expiry and reason."""

    server: str = Field(description="The Triton server.")


class Deployment(BaseModel):
    """The desired and the actual state of one model."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The model's name, which is also its name in Triton.")
    revision: int = Field(description="The newest revision's number.")
    at: datetime = Field(description="When the revision was created (UTC).")
    actor: str = Field(description="Who created the revision.")
    reason: str = Field(description="Why.")
    spec: DeploymentSpec = Field(description="The desired state.")
    status: DeploymentStatus | None = Field(
        default=None, description="The status that this instance last observed; null before its first observation."
    )
    memory: tuple[DeploymentMemory, ...] = Field(
        default=(),
        description="Memory state by server, as this instance last observed it: mode, state, footprint, "
        "last use, expiry, reason.",
    )
    operation_id: str = Field(description="The operation that follows this revision until it is settled.")
    changed: bool = Field(
        default=True,
        description="False in the response to a request that changes nothing, because the newest "
        "revision already has this state.",
    )


@dataclass(frozen=True, slots=True)
class DeploymentFilter:
    """Selects the deployments of a list; an empty field matches every deployment.

    Attributes:
        name: A pattern for the model's name; ``*`` and ``?`` are wildcards.
        q: A part of the model's name, regardless of case.
        labels: Labels of the model.
        phases: Phases, one of which the deployment must be in.
        server: The server that the deployment must be on.
    """

    name: str | None = None
    q: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    phases: frozenset[Phase] | None = None
    server: str | None = None

    @property
    def by_status(self) -> bool:
        """Return whether the filter depends on the status."""
        return self.phases is not None or self.server is not None

    def has_name(self, model: str) -> bool:
        """Return whether a model's name matches."""
        fits = self.name is None or fnmatch.fnmatchcase(model, self.name)
        return fits and (self.q is None or self.q.casefold() in model.casefold())

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Return whether a model's labels match."""
        return all(labels.get(key) == value for key, value in self.labels)

    def has_status(self, status: DeploymentStatus | None) -> bool:
        """Return whether a deployment's status matches."""
        if status is None:
            return not self.by_status
        fits = self.phases is None or status.phase in self.phases
        return fits and (self.server is None or any(one.server == self.server for one in status.servers))


class DeploymentHealth(BaseModel):
    """Results of the probes of a deployment."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model's name.")
    conditions: tuple[Condition, ...] = Field(description="The conditions over all servers.")
    servers: tuple[ServerHealth, ...] = Field(description="The newest probes of this instance, by server.")


class Deployments:
    """Use cases for deployments.

    Args:
        registry: The registry in the store.
        reconciler: Brings about the desired state.
        servers: The servers that this instance drives.
        portability: Says which servers can load a version.
        gateway: Whether a gateway exists that can split the traffic of a model.
    """

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        servers: Sequence[ManagedServer],
        portability: Portability,
        *,
        gateway: bool,
    ) -> None:
        self._gateway = gateway
        self._portability = portability
        self._registry = registry
        self._chains = registry.deployments
        self._checks = DeploymentChecks(registry, servers)
        self._pipelines = PipelineChecks(registry)
        self._reconciler = reconciler

    async def page(
        self, *, after: str, limit: int, wanted: DeploymentFilter, sees: Callable[[str], bool] = lambda _: True
    ) -> tuple[list[Deployment], str | None]:
        """Return deployments sorted by model, and the model after which the next page begins, or None.

        The data comes from memory: the store is asked once for changes, whatever the number of deployments.

        Args:
            after: The model after which the page begins.
            limit: Maximum number of deployments.
            wanted: The filter.
            sees: Returns whether the caller may see a model.
        """
        found: list[Deployment] = []
        size = max(_SCANNED_AT_ONCE, limit + 1) if wanted.by_status else limit + 1
        while True:
            revisions = await asyncio.to_thread(self._candidates, after, size, wanted, sees)
            for revision in revisions:
                model = revision.spec.model
                if not wanted.by_status or wanted.has_status(self._reconciler.status(model)):
                    if len(found) == limit:
                        return found, found[-1].model
                    found.append(self._describe(revision))
            if len(revisions) < size:
                return found, None
            after = revisions[-1].spec.model

    def _candidates(
        self, after: str, size: int, wanted: DeploymentFilter, sees: Callable[[str], bool]
    ) -> list[DeploymentRevision]:
        def fits(model: str) -> bool:
            return sees(model) and wanted.has_name(model) and (not wanted.labels or wanted.has_labels(labels(model)))

        def labels(model: str) -> Mapping[str, str]:
            with suppress(NotFoundError):
                return self._registry.get_model(model).labels
            return {}

        return self._chains.after(after, size, fits)

    async def get(self, model: str) -> Deployment:
        """Return a model's deployment.

        Raises:
            NotFoundError: The model is not deployed.
        """
        return self._describe(await self._newest(model))

    async def put(
        self,
        model: str,
        reference: str,
        *,
        settings: DeploymentSettings | None,
        actor: str,
        asker: Principal | None,
        reason: str,
        loaded: bool | None = None,
        applied: Applied | None = None,
    ) -> Deployment:
        """Deploy a version. A refused deployment is not recorded.

        Args:
            model: The model.
            reference: The version, or the alias to follow.
            settings: How to run it; None keeps the settings of the newest revision.
            actor: The caller's name for the history.
            asker: The caller whose permissions are checked; None if API keys are not in use.
            reason: Reason for the history.
            loaded: Whether the model is to be loaded; None loads it.
            applied: The document that asks for it; None for a deployment by other means.

        Raises:
            InvalidReferenceError: The reference is not valid.
            InvalidInputError: It names another model, or a version that Triton, or every server, cannot load.
            InvalidConfigError: Triton would refuse the settings.
            ForbiddenError: The settings need the scope `code`.
            NotFoundError: The version does not exist.
            ConflictError: Its strategy needs a gateway, and there is none.
            InUseError: A pipeline needs the version that it would replace.
        """
        wanted, entry = await self.resolve(model, reference)
        skipped = await asyncio.to_thread(self._skipped, wanted, entry)

        def change(before: DeploymentRevision | None) -> tuple[DeploymentSpec, str]:
            kept = before.spec.settings if before is not None and not before.spec.deleted else DeploymentSettings()
            present = before.spec if before is not None else None
            asked = self._pipelines.resolved(model, entry.number, settings or kept.model_copy(update={"members": {}}))
            checked = self._checks.deploy(wanted, entry, asked, present, asker)
            self._require_loadable(model, entry.number, checked.settings)
            spec = deploy(
                present,
                wanted,
                entry.number,
                checked.settings,
                rollout_id=uuid.uuid4().hex,
                now=datetime.now(UTC),
                applied=applied,
            )
            if loaded is not None:
                spec = spec.with_changes(loaded=loaded)
            if applied is None and present is not None and spec == present.with_changes(applied=None):
                spec = present  # a repeated deployment by other means changes nothing
            if spec.trial is not None and not self._gateway:
                raise ConflictError(
                    f"a {spec.trial.strategy.kind} rollout needs the gateway, which splits and measures "
                    "the traffic; enable it (gateway.enabled), or deploy with the immediate strategy",
                    model=model,
                    strategy=spec.trial.strategy.kind.value,
                )
            how = f" by {spec.trial.strategy.kind}" if spec.trial is not None else ""
            why = reason or f"deploy {wanted}{how}"
            return spec, "; ".join(filter(None, (why, skipped, checked.dropped)))

        return await self._commit(model, change, actor)

    async def resolve(self, model: str, reference: str) -> tuple[Reference, VersionEntry]:
        """Return the version that a deployment by this reference would run.

        Raises:
            InvalidReferenceError: The reference is not valid.
            InvalidInputError: It names another model, or a version that Triton cannot run.
            NotFoundError: The version does not exist.
        """
        validate_model_name(model)
        wanted = Reference.parse(reference)
        if wanted.model != model:
            raise InvalidInputError(
                f"{reference!r} is a version of {wanted.model!r} and cannot be deployed as {model!r}; "
                "a deployment must have its model's name"
            )
        entry = await asyncio.to_thread(self._registry.resolve, wanted)
        if _is_bare(wanted) and not entry.runs:
            # Versions that only a conversion reads are skipped: a bare name means the newest version that Triton can
            # serve.
            head = await asyncio.to_thread(self._registry.get_model, model)
            entry = head.newest_servable or entry
        if not entry.format.runs:
            raise InvalidInputError(
                f"{model}:{entry.number} is {entry.format.value}, which Triton cannot run; convert it first: "
                f"tritonctl convert {model}:{entry.number} --to onnx",
                model=model,
                version=entry.number,
                format=entry.format.value,
            )
        if not entry.servable:
            manifest = await asyncio.to_thread(self._registry.manifest, model, entry.number)
            raise InvalidInputError(
                f"{model}:{entry.number} cannot be deployed, since Triton cannot serve it: {manifest.unservable}",
                model=model,
                version=entry.number,
            )
        return wanted, entry

    def _skipped(self, wanted: Reference, entry: VersionEntry) -> str:
        """Return text that names the newer versions that a bare name skips because Triton cannot serve them; blocks."""
        if not _is_bare(wanted):
            return ""
        live = self._registry.get_model(wanted.model).live_versions
        newer = [f"{wanted.model}:{one.number} ({one.format})" for one in live if one.number > entry.number]
        return f"skipped {', '.join(newer)}, which Triton cannot serve" if newer else ""

    async def check(
        self, model: str, reference: str, settings: DeploymentSettings | None, *, asker: Principal | None
    ) -> tuple[VersionEntry, DeploymentSettings]:
        """Return the version and the settings that `put` would record; raise what `put` would raise."""
        wanted, entry = await self.resolve(model, reference)

        def check() -> DeploymentSettings:
            try:
                present = self._chains.get(model, fresh=True).spec
            except NotFoundError:
                present = None
            asked = settings or (DeploymentSettings() if present is None else present.settings)
            asked = self._pipelines.resolved(model, entry.number, asked)
            checked = self._checks.deploy(wanted, entry, asked, present, asker).settings
            self._require_loadable(model, entry.number, checked)
            return checked

        return entry, await asyncio.to_thread(check)

    def _require_loadable(self, model: str, number: int, settings: DeploymentSettings) -> None:
        """Refuse a version that no server can load; blocks."""
        facts = ModelFacts.of_manifest(self._registry.manifest(model, number))
        self._portability.require_loadable(f"{model}:{number}", facts, settings.node_selector)

    async def rollback(
        self, model: str, *, revision: int | None, actor: str, asker: Principal | None, reason: str
    ) -> Deployment:
        """Roll back to an earlier revision: record a new revision with its settings and its exact version.

        Raises:
            InvalidConfigError: Triton would refuse that revision's settings.
            ForbiddenError: That revision's settings need the scope `code`.
            NotFoundError: The model is not deployed, the revision does not exist, or its version was deleted.
            ConflictError: There is no earlier revision to roll back to.
        """
        validate_model_name(model)

        def change(before: DeploymentRevision | None) -> tuple[DeploymentSpec, str]:
            current = _required(model, before)
            if revision is None and current.spec.trial is not None:
                aborted = RolloutDecision(RolloutAction.ABORT, f"rollback by {actor}")
                spec = apply(current.spec, aborted, current.spec.trial.evidence, datetime.now(UTC))
                return spec, f"rollback of the rollout of version {current.spec.trial.version}" + _because(reason)
            # A named revision is read directly, because the whole history may be long.
            earlier = (
                self._chains.history(model, before=current.number, limit=_ROLLBACK_SEARCHES)
                if revision is None
                else (self._chains.revision(model, revision),)
            )
            goal = rollback_revision(chain((current,), earlier), revision)
            spec = pinned(goal.spec, current.spec)
            try:
                self._checks.return_to(spec, current.spec, asker)
            except InvalidConfigError as error:
                raise InvalidConfigError(
                    f"revision {goal.number} cannot run: {error.message}; name another revision (`tritonctl history "
                    f"{model}`)",
                    **error.details,
                ) from error
            why = f"rollback to revision {goal.number} ({spec.reference})"
            return spec, why + _because(reason)

        return await self._commit(model, change, actor)

    async def set_loaded(self, model: str, *, loaded: bool, actor: str, reason: str) -> Deployment:
        """Load or unload a deployed model.

        Raises:
            NotFoundError: The model is not deployed.
        """
        validate_model_name(model)

        def change(before: DeploymentRevision | None) -> tuple[DeploymentSpec, str]:
            spec = _required(model, before).spec.with_changes(loaded=loaded)
            return spec, reason or ("load" if loaded else "unload")

        return await self._commit(model, change, actor)

    async def change(
        self, model: str, change: Callable[[DeploymentSpec], tuple[DeploymentSpec, str]], *, actor: str
    ) -> Deployment:
        """Commit what ``change`` returns for the newest desired state, calling it again after a concurrent commit.

        Raises:
            NotFoundError: The model is not deployed.
        """
        validate_model_name(model)
        return await self._commit(model, lambda before: change(_required(model, before).spec), actor)

    async def delete(self, model: str, *, actor: str, reason: str) -> Deployment:
        """Remove a deployment; its revisions are kept.

        Raises:
            NotFoundError: The model is not deployed.
        """
        validate_model_name(model)

        def change(before: DeploymentRevision | None) -> tuple[DeploymentSpec, str]:
            spec = _required(model, before).spec.with_changes(deleted=True, loaded=False)
            return spec, reason or "undeploy"

        return await self._commit(model, change, actor)

    async def history(self, model: str, *, before: int | None, limit: int) -> list[DeploymentRevision]:
        """Return a deployment's revisions, newest first.

        Raises:
            NotFoundError: The model was never deployed.
        """
        validate_model_name(model)
        return await asyncio.to_thread(lambda: list(self._chains.history(model, before=before, limit=limit)))

    async def wait(self, model: str, *, seconds: float, awaited: Awaited | None = None) -> Deployment:
        """Wait until the newest revision is settled or ``awaited`` holds, and return the deployment at that time.

        Args:
            model: The model.
            seconds: Maximum time to wait.
            awaited: What to wait for; None waits for Ready, Degraded, Failed or Unloaded.

        Raises:
            NotFoundError: The model is not deployed.
        """
        deadline = time.monotonic() + seconds
        revision = await self._newest(model)
        while not self._come(revision, awaited) and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reconciler.wait_change(), min(_LOOK_SECONDS, left))
            revision = await self._newest(model)
        return self._describe(revision)

    async def health(self, model: str) -> DeploymentHealth:
        """Return the results of the probes of a deployment, for each server.

        Raises:
            NotFoundError: The model is not deployed.
        """
        revision = await self._newest(model)
        status = self._reconciler.status(revision.spec.model)
        return DeploymentHealth(
            model=revision.spec.model,
            conditions=status.conditions if status else (),
            servers=self._reconciler.health(revision.spec.model),
        )

    @staticmethod
    def is_operation(operation_id: str) -> bool:
        """Return whether the identifier is that of a deployment's revision."""
        return operation_id.startswith(OPERATION_PREFIX)

    async def operation(self, operation_id: str, *, wait_seconds: float) -> Operation:
        """Return the operation that carries out a revision; it is derived from stored state, so any instance can.

        Raises:
            NotFoundError: The revision does not exist.
        """
        model, number = parse_operation(operation_id)
        revision = await asyncio.to_thread(self._chains.revision, model, number)
        deadline = time.monotonic() + wait_seconds
        while True:
            operation = await self._operation(revision)
            left = deadline - time.monotonic()
            if operation.state.finished or left <= 0:
                return operation
            await self._reconciler.wait_settled(model, number, min(_LOOK_SECONDS, left))

    async def follow(self, operation_id: str, *, heartbeat_seconds: float) -> AsyncIterator[Operation | None]:
        """Yield the states of a deployment's operation (see `Operations.follow`)."""
        model, number = parse_operation(operation_id)
        revision = await asyncio.to_thread(self._chains.revision, model, number)
        reported: Operation | None = None
        silent_since = time.monotonic()
        while True:
            operation = await self._operation(revision)
            if reported is None or (operation.state, operation.progress) != (reported.state, reported.progress):
                yield operation
                reported, silent_since = operation, time.monotonic()
            elif time.monotonic() - silent_since >= heartbeat_seconds:
                yield None
                silent_since = time.monotonic()
            if operation.state.finished:
                return
            await self._reconciler.wait_settled(model, number, _LOOK_SECONDS)

    async def _operation(self, revision: DeploymentRevision) -> Operation:
        model = revision.spec.model
        newest = self._chains.peek(model)
        if newest is None:
            newest = await asyncio.to_thread(self._chains.get, model, deleted=True)
        status = self._reconciler.status(model)
        return describe_operation(revision, newest, status)

    async def _commit(
        self, model: str, change: Callable[[DeploymentRevision | None], tuple[DeploymentSpec, str]], actor: str
    ) -> Deployment:
        def commit() -> tuple[DeploymentRevision, bool]:
            for attempt in range(_COMMIT_TRIES):
                try:
                    before = self._chains.get(model, fresh=True, deleted=True)
                except NotFoundError:
                    before = None
                spec, why = change(before)
                self._pipelines.check(before.spec if before is not None else None, spec)
                try:
                    revision = self._chains.put(spec, after=before, actor=actor, reason=why)
                except CommitConflictError:
                    if attempt == _COMMIT_TRIES - 1:
                        raise
                else:
                    return revision, before is None or revision.number != before.number
            raise AssertionError("unreachable")

        with tracing.below("commit deployment", model=model):
            revision, changed = await asyncio.to_thread(commit)
        tracing.carry(model)
        self._reconciler.wake(model)
        return self._describe(revision).model_copy(update={"changed": changed})

    async def _newest(self, model: str) -> DeploymentRevision:
        validate_model_name(model)
        revision = self._chains.peek(model)
        if revision is None:
            revision = await asyncio.to_thread(self._chains.get, model)
        return revision

    def _come(self, revision: DeploymentRevision, awaited: Awaited | None) -> bool:
        status = self._reconciler.status(revision.spec.model)
        if status is None or status.revision < revision.number:
            return False
        return status.phase.settled if awaited is None else awaited.holds(status.phase, status.conditions)

    def _describe(self, revision: DeploymentRevision) -> Deployment:
        status = self._reconciler.status(revision.spec.model)
        memory = tuple(_memory(server, view) for server, view in self._reconciler.memory_of(revision.spec.model))
        return Deployment.model_construct(  # everything in it was validated when it was made
            model=revision.spec.model,
            revision=revision.number,
            at=revision.at,
            actor=revision.actor,
            reason=revision.reason,
            spec=revision.spec,
            # The status of an older revision says nothing about this one, but the active version is worth reporting.
            status=status,
            memory=memory,
            operation_id=f"{OPERATION_PREFIX}{revision.spec.model}.{revision.number}",
        )


def _memory(server: str, view: ModelMemoryView) -> DeploymentMemory:
    return DeploymentMemory.model_construct(server=server, **dict(view))


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _is_bare(reference: Reference) -> bool:
    """Return whether the reference names no version and no alias, so that it means the newest version."""
    return reference.version is None and reference.alias is None


def _required(model: str, before: DeploymentRevision | None) -> DeploymentRevision:
    if before is None or before.spec.deleted:
        raise NotFoundError(f"{model!r} is not deployed", model=model)
    return before
