"""Damaged stores of every kind: what fsck finds, what it repairs, and what an operator must decide."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.errors import InvalidInputError, NotFoundError, StoreError, StoreWentBackwardsError
from controlplane.registry.blobs import blob_key
from controlplane.registry.chain import Chain
from controlplane.registry.findings import FsckReport
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from tests.support.registries import artifact, new_registry

Damage = Callable[[ObjectStore], None]


def fill(store: ObjectStore, folder: Path) -> Registry:
    """Create an intact store: two models of two versions each, one deployment, and a version's signature."""
    registry = new_registry(store, folder / "writer", heads=folder / "heads")
    for model in ("a", "b"):
        for number in (1, 2):
            manifest, files = artifact(folder / f"{model}{number}", model=f"{model}{number}".encode() * 100)
            registry.publish(model, manifest, files, actor="tests", aliases=["newest"])
    spec = DeploymentSpec(model="a", reference="a@newest", version=2)
    registry.deployments.put(spec, after=None, actor="tests", reason="deploy")
    store.create("signatures/a/1/00.json", b"{}")
    return registry


def blob_of(registry: Registry, model: str, number: int) -> str:
    return registry.manifest(model, number).files[0].sha256


def manifest_of(registry: Registry, model: str, number: int) -> str:
    return registry.get_model(model).version(number).manifest


def overwrite(store: ObjectStore, key: str, data: bytes) -> None:
    store.delete(key)
    store.create(key, data)


def revision_key(store: ObjectStore, chain: str, number: int) -> str:
    return Chain(store, f"{chain}/revisions/").key(number)


def check(store: ObjectStore, folder: Path, **options: bool) -> FsckReport:
    """Run fsck on a machine without cached data."""
    chosen: dict[str, Any] = {"deep": False, "repair": False, **options}
    return new_registry(store, folder / "checker").fsck(**chosen)


def found(report: FsckReport) -> set[tuple[str, str, str]]:
    return {(one.severity.value, one.reason, one.subject) for one in report.findings}


def test_intact_store_has_no_findings(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    registry.delete_version("b", 1, actor="tests")
    before = {info.key for info in bucket.list("")}
    report = check(bucket, tmp_path, deep=True)
    assert report.findings == ()
    assert (report.chains, report.revisions) == (3, 6)
    assert (report.blobs, report.blobs_unreferenced) == (8, 2)
    assert report.bytes_read == sum(info.size_bytes for info in bucket.list("blobs/"))
    assert {info.key for info in bucket.list("")} == before


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(
            lambda store, registry: store.delete(blob_key(blob_of(registry, "a", 1))),
            {("error", "BlobMissing", "a:1 (model.onnx)")},
            id="blob-missing",
        ),
        pytest.param(
            lambda store, registry: overwrite(store, blob_key(blob_of(registry, "a", 1)), b"cut"),
            {("error", "BlobDamaged", "a:1 (model.onnx)")},
            id="blob-cut",
        ),
        pytest.param(
            lambda store, registry: store.delete(blob_key(manifest_of(registry, "b", 2))),
            {("error", "ManifestMissing", "b:2")},
            id="manifest-missing",
        ),
        pytest.param(
            lambda store, registry: overwrite(store, blob_key(manifest_of(registry, "b", 2)), b"{}"),
            {("error", "ManifestDamaged", "b:2")},
            id="manifest-damaged",
        ),
        pytest.param(
            lambda store, registry: store.delete(revision_key(store, "models/a", 1)),
            {("error", "RevisionMissing", "models/a")},
            id="first-revision-missing",
        ),
        pytest.param(
            lambda store, registry: overwrite(store, revision_key(store, "models/a", 1), b"{"),
            {("error", "RevisionDamaged", "models/a")},
            id="revision-damaged",
        ),
        pytest.param(
            lambda store, registry: store.delete(revision_key(store, "models/a", 2)),
            {("error", "DeploymentDangling", "deployments/a")},
            id="head-lost-that-a-deployment-needs",
        ),
        pytest.param(
            lambda store, registry: store.create("reports/b/7/999999999999.json", b"{}"),
            {("warning", "VersionUnknown", "models/b"), ("warning", "RevisionDamaged", "reports/b/7")},
            id="report-of-a-version-that-is-not-there",
        ),
        pytest.param(
            lambda store, registry: store.create("publishing/x.json", b"{"),
            {("error", "NoteDamaged", "publishing/x.json")},
            id="intent-damaged",
        ),
    ],
)
def test_damage_is_found(
    bucket: ObjectStore,
    tmp_path: Path,
    damage: Callable[[ObjectStore, Registry], None],
    expected: set[tuple[str, str, str]],
) -> None:
    damage(bucket, fill(bucket, tmp_path))
    assert found(check(bucket, tmp_path)) == expected
    assert found(check(bucket, tmp_path)) == expected  # a check changes nothing


def test_parent_other_than_the_previous_revision_is_found(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    key = revision_key(bucket, "models/b", 2)
    document = json.loads(bucket.get(key))
    overwrite(bucket, key, json.dumps({**document, "parent_commit_id": "another", "sha256": None}).encode())
    assert found(check(bucket, tmp_path)) == {("error", "ParentMismatch", "models/b")}
    with pytest.raises(StoreError, match=r"models/b is damaged: .*not based on revision 1 .*fsck"):
        new_registry(bucket, tmp_path / "gc").collect(dry_run=True)
    decided = registry.decide("models/b", restore=False, actor="operator", reason="written by hand")
    assert (decided.number, decided.epoch) == (3, 1)
    assert found(check(bucket, tmp_path)) == {("warning", "ParentMismatch", "models/b")}
    new_registry(bucket, tmp_path / "gc").collect(dry_run=True)


def test_only_a_deep_check_reads_the_blobs(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    digest = blob_of(registry, "a", 1)
    overwrite(bucket, blob_key(digest), b"X" * 200)
    assert found(check(bucket, tmp_path)) == set()
    assert found(check(bucket, tmp_path, deep=True)) == {("error", "BlobDamaged", "a:1 (model.onnx)")}


def test_damage_is_repaired_from_local_copies(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    for number in (1, 2):
        with registry.checkout(registry.manifest("a", number)):
            pass  # it is now in the cache
    overwrite(bucket, blob_key(blob_of(registry, "a", 1)), b"Y" * 200)
    bucket.delete(blob_key(blob_of(registry, "a", 2)))
    bucket.delete(blob_key(manifest_of(registry, "a", 1)))
    overwrite(bucket, revision_key(bucket, "models/b", 2), b"damaged")
    stranger = check(bucket, tmp_path, deep=True, repair=True)
    assert not any(one.repaired for one in stranger.findings)
    report = registry.fsck(deep=True, repair=True)
    assert {(one.reason, one.subject, one.repaired) for one in report.findings} == {
        ("BlobDamaged", "a:1 (model.onnx)", True),
        ("BlobMissing", "a:2 (model.onnx)", True),
        ("ManifestMissing", "a:1", True),
        ("RevisionDamaged", "models/b", True),
    }
    assert report.errors == ()
    assert check(bucket, tmp_path, deep=True).findings == ()


def test_lost_head_is_reported_and_can_be_restored(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    bucket.delete(revision_key(bucket, "models/b", 2))
    assert found(check(bucket, tmp_path)) == set()  # this machine never saw the revision
    report = registry.fsck(deep=False, repair=True)
    assert found(report) == {("error", "ChainWentBackwards", "models/b")}
    assert "revision 2 by tests (publish version 2" in report.findings[0].message
    assert "the newest revision is 1 by tests" in report.findings[0].message
    assert "--restore models/b" in report.findings[0].advice
    assert found(check(bucket, tmp_path)) == found(report)  # fsck recorded the loss for all machines
    with pytest.raises(StoreWentBackwardsError):
        new_registry(bucket, tmp_path / "gc").collect(dry_run=True)
    new_registry(bucket, tmp_path / "operator").decide("models/b", restore=True, actor="operator")
    assert check(bucket, tmp_path).findings == ()
    assert registry.get_model("b").aliases == {"newest": 2}


def test_lost_chain_is_restored_from_the_data_folder(bucket: ObjectStore, tmp_path: Path) -> None:
    fill(bucket, tmp_path)
    bucket.delete(revision_key(bucket, "deployments/a", 1))  # the whole chain
    restarted = new_registry(bucket, tmp_path / "c", heads=tmp_path / "heads")
    restarted.decide("deployments/a", restore=True, actor="operator")
    assert [one.spec.version for one in new_registry(bucket, tmp_path / "d").deployments.list()] == [2]


def test_repair_allows_commits_to_a_chain_that_caught_up(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = fill(bucket, tmp_path)
    key = revision_key(bucket, "models/b", 2)
    data = bucket.get(key)
    bucket.delete(key)
    with pytest.raises(StoreWentBackwardsError):
        registry.get_model("b")
    bucket.create(key, data)
    report = check(bucket, tmp_path, repair=True)
    assert [(one.reason, one.repaired) for one in report.findings] == [("ChainWentBackwards", True)]
    assert registry.update_model("b", description="on", actor="tests").description == "on"


def test_damaged_newest_revision_can_be_accepted(bucket: ObjectStore, tmp_path: Path) -> None:
    fill(bucket, tmp_path)
    overwrite(bucket, revision_key(bucket, "models/b", 2), b"damaged")
    operator = new_registry(bucket, tmp_path / "operator")
    decided = operator.decide("models/b", restore=False, actor="operator")
    assert decided.number == 3
    assert [entry.number for entry in operator.get_model("b").live_versions] == [1]
    assert found(check(bucket, tmp_path)) == {("warning", "RevisionDamaged", "models/b")}


@pytest.mark.parametrize("name", ["leases/reconciler", "models/", "models/../keys", "", "models/a/b"])
def test_decisions_are_possible_only_for_guarded_chains(bucket: ObjectStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"give models/NAME, deployments/NAME, keys or cordons"):
        new_registry(bucket, tmp_path / "c").decide(name, restore=True, actor="a")


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("name", ["models/nothere", "deployments/nothere", "keys"])
def test_decision_about_unknown_chain_is_refused(bucket: ObjectStore, tmp_path: Path, name: str, restore: bool) -> None:
    registry = fill(bucket, tmp_path)
    with pytest.raises(NotFoundError, match=rf"^the store has no chain {name}; check the name") as refused:
        registry.decide(name, restore=restore, actor="operator")
    assert refused.value.details["chain"] == name
    assert list(bucket.list(f"{name}/")) == []


@pytest.mark.parametrize("numbers", [(2,), (1,), (1, 2)])
def test_damaged_chain_blocks_garbage_collection(bucket: ObjectStore, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    fill(bucket, tmp_path)
    for number in numbers:
        bucket.delete(revision_key(bucket, "models/a", number))  # the revision of the deployed a:2, or the first
    collector = new_registry(bucket, tmp_path / "gc")
    with pytest.raises(StoreError, match="fsck"):
        collector.collect(dry_run=False, grace_seconds=0)
    assert len(list(bucket.list("blobs/"))) == 8
