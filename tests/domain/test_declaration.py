"""Differences between documents and what exists."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from controlplane.domain.declaration import Action, Difference, deployment_difference, model_changes
from controlplane.domain.deployment import Applied, DeploymentSettings, DeploymentSpec, RolloutPhase
from controlplane.domain.documents import DeploymentBody, Document, ModelBody
from controlplane.domain.model import ModelHead
from controlplane.domain.names import Reference
from controlplane.domain.rollout.decision import deploy
from controlplane.domain.rollout.rollback import pinned

NOW = datetime(2026, 11, 30, tzinfo=UTC)
CANARY = DeploymentSettings.model_validate({"rollout": {"kind": "canary"}})


def compare(
    body: DeploymentBody, present: DeploymentSpec | None, *, version: int = 2, force: bool = False, set_name: str = "s"
) -> Difference:
    settings = body.settings or (present.settings if present else DeploymentSettings())
    return deployment_difference("net", body, version, settings, present, set_name=set_name, force=force)


def applied(body: DeploymentBody, before: DeploymentSpec | None, version: int) -> DeploymentSpec:
    return deploy(
        before,
        Reference.parse(body.reference),
        version,
        body.settings or DeploymentSettings(),
        rollout_id="r",
        now=NOW,
        applied=Applied(set="s", digest=body.digest()),
    )


def test_applied_document_is_unchanged() -> None:
    body = DeploymentBody(reference="net:2", settings=DeploymentSettings(max_batch_size=4))
    assert compare(body, None).action is Action.CREATE
    assert compare(body, applied(body, None, 2)).action is Action.UNCHANGED


def test_setting_that_was_changed_by_hand_is_corrected() -> None:
    body = DeploymentBody(reference="net:2", settings=DeploymentSettings(max_batch_size=4))
    by_hand = deploy(
        applied(body, None, 2), Reference.parse("net:2"), 2, DeploymentSettings(priority=3), rollout_id="r", now=NOW
    )
    found = compare(body, by_hand)
    assert found.action is Action.UPDATE
    assert {(one.field, one.before, one.after) for one in found.changes} == {
        ("settings.max_batch_size", None, 4),
        ("settings.priority", 3, 0),
    }


def test_omitted_settings_are_not_managed() -> None:
    body = DeploymentBody(reference="net:2")
    present = applied(body, None, 2).with_changes(settings=DeploymentSettings(priority=3))
    assert compare(body, present).action is Action.UNCHANGED


def test_rollback_is_kept_until_the_document_changes_or_force() -> None:
    old, body = DeploymentBody(reference="net:1"), DeploymentBody(reference="net:2")
    first = applied(old, None, 1)
    back = pinned(first, applied(body, first, 2))
    assert compare(body, back).action is Action.KEPT
    assert "rollback to version 1" in compare(body, back).note
    assert compare(body, back, force=True).action is Action.UPDATE
    assert compare(DeploymentBody(reference="net:3"), back, version=3).action is Action.UPDATE


def test_rollout_in_progress_is_unchanged_and_aborted_one_is_kept() -> None:
    body = DeploymentBody(reference="net:2", settings=CANARY)
    running = applied(body, applied(DeploymentBody(reference="net:1"), None, 1), 2)
    assert running.trial is not None
    assert compare(body, running).action is Action.UNCHANGED
    ended = running.trial.with_changes(phase=RolloutPhase.ABORTED, verdict="version 2 is worse")
    found = compare(body, running.with_changes(rollout=ended))
    assert found.action is Action.KEPT
    assert "version 2 is worse" in found.note


def test_bare_name_differs_when_a_newer_version_exists() -> None:
    body = DeploymentBody(reference="net")
    present = applied(body, None, 1)
    assert compare(body, present, version=1).action is Action.UNCHANGED
    found = compare(body, present.with_changes(applied=None), version=2)
    assert [(one.field, one.before, one.after) for one in found.changes] == [("version", 1, 2)]


def test_deployment_by_hand_joins_the_set_without_another_difference() -> None:
    body = DeploymentBody(reference="net:2")
    by_hand = DeploymentSpec(model="net", reference="net:2", version=2)
    found = compare(body, by_hand)
    assert (found.action, [one.field for one in found.changes]) == (Action.UPDATE, ["set"])
    assert compare(body, applied(body, None, 2), set_name="other").changes[0].before == "s"


def test_unloaded_is_a_difference_only_where_the_document_says_so() -> None:
    body = DeploymentBody(reference="net:2")
    present = applied(body, None, 2).with_changes(loaded=False)
    assert compare(body, present).action is Action.UNCHANGED
    found = compare(DeploymentBody(reference="net:2", loaded=True), present)
    assert [one.field for one in found.changes] == ["loaded"]


def test_labels_are_compared_one_by_one() -> None:
    head = ModelHead(name="net", labels={"team": "a", "old": "x"})
    changes = model_changes(ModelBody(labels={"team": "b"}), head)
    assert {(one.field, one.before, one.after) for one in changes} == {
        ("labels.old", "x", None),
        ("labels.team", "a", "b"),
    }
    assert model_changes(ModelBody(), head) == ()


@pytest.mark.parametrize(
    "change",
    [{"apiVersion": "v1"}, {"kind": "Pod"}, {"metadata": {}}, {"spec": {"reference": "net:1", "replicas": 2}}],
)
def test_document_of_another_form_is_refused(change: dict[str, Any]) -> None:
    good = {"apiVersion": "tritonctl/v1", "kind": "Deployment", "metadata": {"name": "n"}, "spec": {"reference": "n"}}
    adapter: TypeAdapter[Document] = TypeAdapter(Document)
    adapter.validate_python(good)
    with pytest.raises(ValidationError):
        adapter.validate_python(good | change)
