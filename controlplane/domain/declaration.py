"""What a document of `tritonctl apply` would change. Pure."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from controlplane.domain.access import ApiKey
from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, RolloutPhase
from controlplane.domain.documents import ApiKeyDocument, DeploymentBody, ModelBody
from controlplane.domain.model import ModelHead
from controlplane.domain.names import Reference


class Action(StrEnum):
    """What happens to a document's object."""

    CREATE = "create"
    UPDATE = "update"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """It differs because of a rollout or a rollback, which the same document does not undo."""
    DELETE = "delete"
    REFUSED = "refused"


class FieldChange(BaseModel):
    """One field that differs."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="The field, for example settings.instance_count.")
    before: JsonValue = Field(description="Its value now; null if it has none.")
    after: JsonValue = Field(description="Its value after the change.")


class Difference(BaseModel):
    """What a document would change, or did change."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="The document's kind.")
    name: str = Field(description="The document's name.")
    action: Action = Field(description="create, update, unchanged, kept, delete or refused.")
    changes: tuple[FieldChange, ...] = Field(default=(), description="The fields that differ.")
    note: str = Field(default="", description="Why it is kept or refused, or what else is to be known.")
    operation_id: str | None = Field(default=None, description="The operation that a changed deployment started.")
    secret: str | None = Field(
        default=None, description="The secret of a new API key; shown only here, and not in a dry run."
    )

    @property
    def differs(self) -> bool:
        """Whether applying the document changes something."""
        return self.action in {Action.CREATE, Action.UPDATE, Action.DELETE}


def model_changes(wanted: ModelBody, present: ModelHead | None) -> tuple[FieldChange, ...]:
    """Return how a model differs from its document."""
    changes = []
    if wanted.description is not None and wanted.description != (present.description if present else ""):
        changes.append(_change("description", present.description if present else None, wanted.description))
    if wanted.labels is not None:
        changes += _differences("labels", dict(present.labels) if present else {}, dict(wanted.labels))
    return tuple(changes)


def key_changes(wanted: ApiKeyDocument, present: ApiKey | None) -> tuple[FieldChange, ...]:
    """Return how an active API key differs from its document."""
    asked = wanted.spec.model_dump(mode="json")
    have = (
        {}
        if present is None
        else {name: value for name, value in present.model_dump(mode="json").items() if name in asked}
    )
    return tuple(_change(name, have.get(name), asked[name]) for name in asked if have.get(name) != asked[name])


def deployment_difference(
    model: str,
    wanted: DeploymentBody,
    version: int,
    settings: DeploymentSettings,
    present: DeploymentSpec | None,
    *,
    set_name: str,
    force: bool,
) -> Difference:
    """Return how a deployment differs from its document.

    Args:
        model: The model.
        wanted: The document's body.
        version: The version that its reference resolves to.
        settings: The settings that a deployment of it would record.
        present: The desired state; None if the model is not deployed.
        set_name: The set of documents.
        force: Whether to undo what a rollout or a rollback decided.
    """
    if present is None:
        created = _change("reference", None, wanted.reference), *_given(settings)
        return Difference(kind="Deployment", name=model, action=Action.CREATE, changes=created)
    trial = present.trial
    reference, running, have = (
        (present.reference, present.version, present.settings)
        if trial is None
        else (trial.reference, trial.version, trial.settings)
    )
    changes = []
    if Reference.parse(reference) != Reference.parse(wanted.reference):
        changes.append(_change("reference", reference, wanted.reference))
    elif _is_bare(wanted.reference) and running != version:
        changes.append(_change("version", running, version))
    if wanted.settings is not None:
        changes += _differences("settings", have.model_dump(mode="json"), settings.model_dump(mode="json"))
    if changes and not force and present.applied is not None and present.applied.digest == wanted.digest():
        return Difference(
            kind="Deployment", name=model, action=Action.KEPT, changes=tuple(changes), note=_why_kept(present)
        )
    if wanted.loaded is not None and wanted.loaded != present.loaded:
        changes.append(_change("loaded", present.loaded, wanted.loaded))
    note = ""
    if not changes and (present.applied is None or present.applied.set != set_name):
        changes.append(_change("set", present.applied.set if present.applied else None, set_name))
        note = "nothing runs differently; the deployment now belongs to the set"
    action = Action.UPDATE if changes else Action.UNCHANGED
    return Difference(kind="Deployment", name=model, action=action, changes=tuple(changes), note=note)


def _why_kept(present: DeploymentSpec) -> str:
    rollout = present.rollout
    if rollout is not None and rollout.phase is RolloutPhase.ABORTED:
        why = f"the rollout of version {rollout.version} was aborted: {rollout.verdict}"
    else:
        why = f"a rollback to version {present.version} replaced it"
    return f"{why}. Change the document, or apply it with --force"


def _is_bare(reference: str) -> bool:
    parsed = Reference.parse(reference)
    return parsed.version is None and parsed.alias is None


def _given(settings: DeploymentSettings) -> Iterator[FieldChange]:
    """Yield the settings that are not the defaults."""
    default = DeploymentSettings().model_dump(mode="json")
    yield from _differences("settings", default, settings.model_dump(mode="json"))


def _differences(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    """Yield the entries that differ; those of mappings in both one by one."""
    for name in sorted(before.keys() | after.keys()):
        have, want = before.get(name), after.get(name)
        if have == want:
            continue
        if isinstance(have, dict) and isinstance(want, dict):
            yield from _differences(f"{prefix}.{name}", have, want)
        else:
            yield _change(f"{prefix}.{name}", have, want)


def _change(field: str, before: Any, after: Any) -> FieldChange:
    return FieldChange(field=field, before=before, after=after)
