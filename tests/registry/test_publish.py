import math
from pathlib import Path

import pytest

from controlplane.domain.manifest import Format, GoldenSamples, Lineage
from controlplane.domain.samples import Sample, encode_samples
from controlplane.errors import (
    AlreadyExistsError,
    CommitOutcomeUnknownError,
    ConflictError,
    DigestMismatchError,
    InvalidInputError,
    InvalidNameError,
    NotFoundError,
)
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import artifact, new_registry, publish, require_readable


def test_all_blobs_of_a_manifest_are_in_the_store(registry: Registry, tmp_path: Path) -> None:
    import numpy as np

    from controlplane.registry.artifact import scan

    manifest, files = artifact(tmp_path / "a", model=b"model", weights=b"w" * 1000)
    sample = Sample({"x": np.ones(2, np.float32)}, {"y": np.zeros(2, np.float32)})
    (tmp_path / "samples.npz").write_bytes(encode_samples((sample,)))
    (tmp_path / "log.txt").write_text("converted")
    ((samples, samples_path),) = scan(tmp_path / "samples.npz")
    ((log, log_path),) = scan(tmp_path / "log.txt")
    manifest = manifest.model_copy(
        update={
            "golden": GoldenSamples(file=samples, count=1),
            "lineage": Lineage(source="m:1", converter="c", log=log),
            "metrics": {"accuracy": 0.9},
        }
    )
    moved: list[int] = []
    entry = registry.publish(
        "m",
        manifest,
        {**files, samples.sha256: samples_path, log.sha256: log_path},
        actor="ann",
        reason="nightly",
        progress=moved.append,
    )
    assert sum(moved) == sum(blob.size_bytes for blob in manifest.blobs)
    assert (entry.published_by, entry.size_bytes, entry.format) == ("ann", 1005, Format.ONNX)
    assert registry.manifest("m", 1) == manifest
    require_readable(registry, "m")
    (read,) = registry.samples(manifest)
    assert read.inputs["x"].tolist() == [1, 1]
    assert registry.history("m")[0].reason == "publish version 1: nightly"


def test_a_version_that_cannot_be_served_is_listed_as_such(registry: Registry, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"model")
    registry.publish("m", manifest, files, actor="ann")
    registry.publish("m", manifest.model_copy(update={"unservable": "it gives a sequence"}), files, actor="ann")
    assert [entry.servable for entry in registry.get_model("m").versions] == [True, False]
    assert registry.manifest("m", 2).unservable == "it gives a sequence"


def test_existing_blobs_are_not_uploaded_again(store: ObjectStore, tmp_path: Path) -> None:
    hooked = HookedStore(store)
    registry = new_registry(hooked, tmp_path / "cache")
    manifest, files = artifact(tmp_path / "a", shared=b"s" * 100, model=b"one")
    registry.publish("m", manifest, files, actor="a")
    hooked.calls.clear()
    moved: list[int] = []
    manifest, files = artifact(tmp_path / "a", model=b"two")
    registry.publish("m", manifest, files, actor="a", progress=moved.append)
    assert len([key for operation, key in hooked.calls if operation == "put_file"]) == 1
    assert sum(moved) == 103
    assert registry.publish("m", manifest, {}, actor="a").number == 3  # all stored: no local file is needed


def test_a_blob_of_the_wrong_size_is_replaced(store: ObjectStore, registry: Registry, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"whole")
    store.create(f"blobs/sha256/{manifest.files[0].sha256[:2]}/{manifest.files[0].sha256}", b"who")
    registry.publish("m", manifest, files, actor="a")
    require_readable(registry, "m")


def test_a_missing_file_is_named_and_nothing_is_published(registry: Registry, tmp_path: Path) -> None:
    manifest, _ = artifact(tmp_path / "a", model=b"1", weights=b"2")
    with pytest.raises(InvalidInputError, match="and 1 other files") as caught:
        registry.publish("m", manifest, {}, actor="a")
    assert set(caught.value.details["missing"]) == {file.sha256 for file in manifest.files}
    with pytest.raises(NotFoundError):
        registry.get_model("m")


def test_a_file_that_changed_is_refused(registry: Registry, store: ObjectStore, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"as hashed")
    (tmp_path / "a" / "model.onnx").write_bytes(b"as it is!")
    with pytest.raises(DigestMismatchError):
        registry.publish("m", manifest, files, actor="a")
    with pytest.raises(NotFoundError):
        registry.get_model("m")
    assert list(store.list("publishing/")) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_manifest_that_json_cannot_represent_is_rejected(registry: Registry, tmp_path: Path, value: float) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"1")
    with pytest.raises(InvalidInputError, match="NaN"):
        registry.publish("m", manifest.model_copy(update={"metrics": {"loss": value}}), files, actor="a")


def test_names_are_checked_before_anything_is_sent(registry: Registry, store: ObjectStore, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"1")
    with pytest.raises(InvalidNameError):
        registry.publish("../m", manifest, files, actor="a")
    with pytest.raises(InvalidNameError):
        registry.publish("m", manifest, files, actor="a", aliases=["Bad"])
    assert list(store.list("")) == []


def test_publish_repeated_with_its_commit_id_returns_the_same_version(registry: Registry, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"1")
    first = registry.publish("m", manifest, files, actor="a", commit_id="job-1")
    publish(registry, tmp_path, b"2")
    assert registry.publish("m", manifest, files, actor="a", commit_id="job-1") == first
    assert registry.publish("m", manifest, files, actor="a", commit_id="job-2").number == 3


def test_number_is_given_and_never_used_twice(registry: Registry, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"1")

    def numbered(number: int | None, commit_id: str | None = None) -> int:
        return registry.publish("m", manifest, files, actor="a", number=number, commit_id=commit_id).number

    assert [numbered(3), numbered(11, "job"), numbered(None)] == [3, 11, 12]
    assert numbered(11, "job") == 11, "a repeated publish finds its version"
    with pytest.raises(AlreadyExistsError, match="m:3 exists with other content; use 13 or a higher number"):
        numbered(3)
    with pytest.raises(ConflictError, match="the newest is 12; use 13"):
        numbered(5)
    registry.delete_version("m", 12, actor="a")
    with pytest.raises(ConflictError, match="it was deleted, and a number is not used again"):
        numbered(12)
    registry.delete_model("m", actor="a")
    with pytest.raises(ConflictError, match="m:3 cannot be published: it was deleted"):
        numbered(3)
    assert numbered(20) == 20
    assert [entry.number for entry in registry.get_model("m").live_versions] == [20]


def test_unknown_outcome_keeps_the_blobs_and_a_retry_resolves_it(store: ObjectStore, tmp_path: Path) -> None:
    def lose(operation: str, key: str) -> None:
        if operation in {"create", "get"} and key.startswith("models/"):
            raise CommitOutcomeUnknownError("the answer was lost", key=key)

    hooked = HookedStore(store, after=lose)
    registry = new_registry(hooked, tmp_path / "cache")
    manifest, files = artifact(tmp_path / "a", model=b"1")
    with pytest.raises(CommitOutcomeUnknownError):
        registry.publish("m", manifest, files, actor="a", commit_id="job-1")
    assert len(list(store.list("publishing/"))) == 1  # the commit may have won, so its blobs must be kept
    healthy = new_registry(store, tmp_path / "cache")
    assert healthy.publish("m", manifest, files, actor="a", commit_id="job-1").number == 1
    require_readable(healthy, "m")


def test_damaged_blob_is_reported(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1")
    (file,) = registry.manifest("m", 1).files
    key = f"blobs/sha256/{file.sha256[:2]}/{file.sha256}"
    registry.store.delete(key)
    with pytest.raises(NotFoundError, match=file.sha256):
        registry.read_blob(file.sha256)
    with pytest.raises(NotFoundError, match=file.sha256):
        registry.fetch(file)
    registry.store.create(key, b"2")
    with pytest.raises(DigestMismatchError):
        registry.read_blob(file.sha256)
    with pytest.raises(DigestMismatchError):
        registry.fetch(file)
