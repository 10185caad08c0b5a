"""Declared state: compares documents with what exists, and brings about what differs."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.domain.access import ApiKey, Principal, Scope, check_key_name, check_patterns
from controlplane.domain.declaration import (
    Action,
    Difference,
    FieldChange,
    deployment_difference,
    key_changes,
    model_changes,
)
from controlplane.domain.deployment import Applied, DeploymentSpec
from controlplane.domain.documents import (
    KINDS,
    AliasDocument,
    ApiKeyDocument,
    DeploymentDocument,
    Document,
    ModelDocument,
)
from controlplane.domain.names import LATEST, Reference, validate_alias, validate_model_name
from controlplane.errors import ControlPlaneError, InvalidInputError, NotFoundError
from controlplane.registry.keys import KeyRequest
from controlplane.registry.registry import Registry
from controlplane.services.deployments import DeploymentFilter, Deployments
from controlplane.services.keys import Keys
from controlplane.services.models import Models

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Declaration:
    """Documents and how to apply them.

    Attributes:
        documents: The documents, each for another object.
        set_name: The set that their deployments belong to.
        prune: Whether to undeploy the deployments of the set that have no document.
        force: Whether to undo what rollouts and rollbacks decided.
        reason: The reason, for the history.
    """

    documents: Sequence[Document]
    set_name: str
    prune: bool = False
    force: bool = False
    reason: str = ""


class Declarations:
    """Use cases of `tritonctl apply` and `tritonctl diff`."""

    def __init__(self, registry: Registry, models: Models, deployments: Deployments, keys: Keys) -> None:
        self._registry = registry
        self._models = models
        self._deployments = deployments
        self._keys = keys

    async def compare(self, wanted: Declaration, *, asker: Principal | None) -> list[Difference]:
        """Return what each document would change; a document that would be refused has the reason as its note.

        Raises:
            InvalidInputError: Two documents have the same kind and name.
        """
        ordered = _ordered(wanted.documents)
        moved = {one.metadata.name: one.spec.version for one in ordered if isinstance(one, AliasDocument)}
        found: list[Difference] = []
        pipelines: list[Difference] = []
        for document in ordered:
            try:
                members = await self._members(document, moved)
                of_kind = pipelines if members else found
                new = await self._new_members(members, wanted.documents)
                if new:
                    of_kind.append(
                        _difference(document, Action.CREATE, note=f"checked once {', '.join(new)} is deployed")
                    )
                else:
                    of_kind.append(await self._compare(document, wanted, moved, asker))
            except ControlPlaneError as error:
                found.append(_difference(document, Action.REFUSED, note=error.message))
        found += pipelines  # after their members
        if wanted.prune:
            found += await self._surplus(wanted, asker)
        return found

    async def apply(self, wanted: Declaration, *, actor: str, asker: Principal | None) -> list[Difference]:
        """Bring about what the documents declare. Applying them again changes nothing.

        If a document is refused, nothing is changed. Each object is one commit: if a commit fails, the earlier ones
        stay, and the next apply continues.

        Raises:
            InvalidInputError: A document is refused, or two have the same kind and name.
            ControlPlaneError: A commit failed.
        """
        compared = await self.compare(wanted, asker=asker)
        if refused := [one for one in compared if one.action is Action.REFUSED]:
            listed = "; ".join(f"{one.kind} {one.name}: {one.note}" for one in refused[:10])
            raise InvalidInputError(
                f"{len(refused)} of {len(compared)} documents are refused, and nothing was changed: {listed}",
                refused=[{"kind": one.kind, "name": one.name, "reason": one.note} for one in refused],
            )
        by_name: dict[tuple[str, str], Document] = {(one.kind, one.metadata.name): one for one in wanted.documents}
        applied = []
        for one in compared:
            if not one.differs:
                applied.append(one)
            elif one.action is Action.DELETE:
                reason = wanted.reason or f"no document in the set {wanted.set_name}"
                gone = await self._deployments.delete(one.name, actor=actor, reason=reason)
                applied.append(one.model_copy(update={"operation_id": gone.operation_id}))
            else:
                update = await self._bring_about(by_name[one.kind, one.name], one, wanted, actor, asker)
                applied.append(one.model_copy(update=update))
        return applied

    async def _members(self, document: Document, moved: Mapping[str, int]) -> tuple[str, ...]:
        """Return the members of the version that a deployment's document names, if it is a pipeline."""
        if not isinstance(document, DeploymentDocument):
            return ()
        model = document.metadata.name
        _, entry = await self._deployments.resolve(model, _moved(document, moved))
        return (await asyncio.to_thread(self._registry.manifest, model, entry.number)).members

    async def _new_members(self, members: Sequence[str], documents: Sequence[Document]) -> list[str]:
        """Return the members that are not deployed yet, and that the same documents deploy."""
        declared = {one.metadata.name for one in documents if isinstance(one, DeploymentDocument)}
        return [name for name in members if name in declared and await self._present(name) is None]

    async def _compare(
        self, document: Document, wanted: Declaration, moved: Mapping[str, int], asker: Principal | None
    ) -> Difference:
        match document:
            case ModelDocument():
                return await self._compare_model(document, asker)
            case AliasDocument():
                return await self._compare_alias(document, asker)
            case ApiKeyDocument():
                return await self._compare_key(document, asker)
            case DeploymentDocument():
                return await self._compare_deployment(document, wanted, moved, asker)

    async def _compare_model(self, document: ModelDocument, asker: Principal | None) -> Difference:
        name = validate_model_name(document.metadata.name)
        _require_model(asker, name)
        try:
            present = await self._models.get(name)
        except NotFoundError:
            return _difference(document, Action.CREATE, model_changes(document.spec, None))
        changes = model_changes(document.spec, present)
        return _difference(document, Action.UPDATE if changes else Action.UNCHANGED, changes)

    async def _compare_alias(self, document: AliasDocument, asker: Principal | None) -> Difference:
        model, alias = _alias(document)
        _require_model(asker, model)
        head = await self._models.get(model)
        entry = head.version(document.spec.version)
        before = head.aliases.get(alias)
        if before == entry.number:
            return _difference(document, Action.UNCHANGED)
        changes = (FieldChange(field="version", before=before, after=entry.number),)
        return _difference(document, Action.UPDATE if before else Action.CREATE, changes)

    async def _compare_key(self, document: ApiKeyDocument, asker: Principal | None) -> Difference:
        name = check_key_name(document.metadata.name)
        check_patterns(document.spec.models)
        if asker is not None:
            asker.require_scope(Scope.ADMIN, "an ApiKey document")
            asker.require_wide("an ApiKey document")
        now = datetime.now(UTC)
        expires = document.spec.expires_at
        present = _active_key(await self._keys.all(), name, now)
        if present is None:
            if expires is not None and expires <= now:
                raise InvalidInputError(f"expires_at {expires.isoformat()} is in the past")
            return _difference(document, Action.CREATE, key_changes(document, None))
        if changes := key_changes(document, present):
            fields = ", ".join(change.field for change in changes)
            raise InvalidInputError(
                f"the key exists with other values ({fields}), and a key cannot be changed; revoke it first "
                f"(`tritonctl keys revoke {name}`), then apply again for a new secret"
            )
        return _difference(document, Action.UNCHANGED)

    async def _compare_deployment(
        self, document: DeploymentDocument, wanted: Declaration, moved: Mapping[str, int], asker: Principal | None
    ) -> Difference:
        model = validate_model_name(document.metadata.name)
        _require_model(asker, model)
        reference = _moved(document, moved)
        entry, settings = await self._deployments.check(model, reference, document.spec.settings, asker=asker)
        return deployment_difference(
            model,
            document.spec,
            entry.number,
            settings,
            await self._present(model),
            set_name=wanted.set_name,
            force=wanted.force,
        )

    async def _present(self, model: str) -> DeploymentSpec | None:
        try:
            revision = await asyncio.to_thread(self._registry.deployments.get, model, fresh=True)
        except NotFoundError:
            return None
        return revision.spec

    async def _surplus(self, wanted: Declaration, asker: Principal | None) -> list[Difference]:
        """Return the deployments of the set that have no document."""
        declared = {one.metadata.name for one in wanted.documents if isinstance(one, DeploymentDocument)}
        found, after = [], ""
        while True:
            page, last = await self._deployments.page(
                after=after,
                limit=_PAGE,
                wanted=DeploymentFilter(),
                sees=lambda model: asker is None or asker.sees(model),
            )
            for one in page:
                applied = one.spec.applied
                if applied is not None and applied.set == wanted.set_name and one.model not in declared:
                    change = FieldChange(field="reference", before=one.spec.reference, after=None)
                    found.append(Difference(kind="Deployment", name=one.model, action=Action.DELETE, changes=(change,)))
            if last is None:
                return found
            after = last

    async def _bring_about(
        self, document: Document, found: Difference, wanted: Declaration, actor: str, asker: Principal | None
    ) -> dict[str, str]:
        """Carry out one difference, and return what is only known afterwards."""
        name, reason = document.metadata.name, wanted.reason or "apply"
        match document:
            case ModelDocument():
                await self._models.put(
                    name,
                    description=document.spec.description,
                    labels=document.spec.labels,
                    actor=actor,
                    reason=reason,
                )
            case AliasDocument():
                model, alias = _alias(document)
                await self._models.set_alias(model, alias, document.spec.version, actor=actor, reason=reason)
            case ApiKeyDocument():
                request = KeyRequest(name=name, **document.spec.model_dump())
                _, secret = await self._keys.create(request, actor=actor)
                return {"secret": secret}
            case DeploymentDocument():
                body = document.spec
                only_loaded = {change.field for change in found.changes} == {"loaded"}
                if only_loaded and body.loaded is not None:
                    deployment = await self._deployments.set_loaded(
                        name, loaded=body.loaded, actor=actor, reason=reason
                    )
                else:
                    deployment = await self._deployments.put(
                        name,
                        body.reference,
                        settings=body.settings,
                        loaded=body.loaded,
                        applied=Applied(set=wanted.set_name, digest=body.digest()),
                        actor=actor,
                        asker=asker,
                        reason=wanted.reason,
                    )
                return {"operation_id": deployment.operation_id}
        return {}


def _ordered(documents: Sequence[Document]) -> list[Document]:
    seen = set()
    for one in documents:
        identity = (one.kind, one.metadata.name)
        if identity in seen:
            raise InvalidInputError(f"two documents have the kind {one.kind} and the name {one.metadata.name!r}")
        seen.add(identity)
    return sorted(documents, key=lambda one: KINDS.index(one.kind))


def _difference(document: Document, action: Action, changes: Sequence[FieldChange] = (), note: str = "") -> Difference:
    return Difference(kind=document.kind, name=document.metadata.name, action=action, changes=tuple(changes), note=note)


def _moved(document: DeploymentDocument, moved: Mapping[str, int]) -> str:
    """Return a deployment's reference; an alias that the same documents move, before the deployment, by its version."""
    reference = document.spec.reference
    number = moved.get(reference)
    return reference if number is None else f"{document.metadata.name}:{number}"


def _alias(document: AliasDocument) -> tuple[str, str]:
    reference = Reference.parse(document.metadata.name)
    if document.metadata.name.endswith(f"@{LATEST}"):
        raise InvalidInputError("'latest' always points to the newest version and cannot be declared")
    if reference.alias is None:
        raise InvalidInputError(f"{document.metadata.name!r} is not the name of an alias; use model@alias")
    validate_alias(reference.alias)
    return validate_model_name(reference.model), reference.alias


def _require_model(asker: Principal | None, model: str) -> None:
    if asker is not None:
        asker.require_model(model)


def _active_key(keys: Sequence[ApiKey], name: str, now: datetime) -> ApiKey | None:
    return next((key for key in keys if key.name == name and not key.why_not(now)), None)
