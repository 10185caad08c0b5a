from pathlib import Path

import pytest

from controlplane.domain.names import Reference
from controlplane.errors import AlreadyExistsError, InUseError, InvalidInputError, InvalidNameError, NotFoundError
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from tests.support.registries import publish


def reasons(registry: Registry, model: str = "m") -> list[str]:
    return [revision.reason for revision in registry.history(model)]


# Models


def test_a_model_is_created_changed_and_deleted(registry: Registry) -> None:
    registry.create_model("m", description="d", labels={"team": "a"}, actor="ann", reason="first try")
    with pytest.raises(AlreadyExistsError, match="'m'"):
        registry.create_model("m", actor="ann")
    registry.update_model("m", labels={"team": "b"}, actor="bob")
    registry.update_model("m", labels={"team": "b"}, description="d", actor="bob")  # nothing changes
    head = registry.get_model("m")
    assert (head.description, head.labels) == ("d", {"team": "b"})
    registry.delete_model("m", actor="ann", reason="done")
    with pytest.raises(NotFoundError):
        registry.get_model("m")
    with pytest.raises(NotFoundError):
        registry.update_model("m", description="x", actor="a")
    assert reasons(registry) == ["delete model: done", "change labels", "create model: first try"]
    assert [revision.actor for revision in registry.history("m")] == ["ann", "bob", "ann"]


def test_models_are_listed_in_pages_without_the_deleted(registry: Registry) -> None:
    names = [f"m{number}" for number in range(9)]
    for name in names:
        registry.create_model(name, actor="a")
    for name in ("m1", "m2", "m3", "m8"):
        registry.delete_model(name, actor="a")
    live = ["m0", "m4", "m5", "m6", "m7"]
    assert [head.name for head in registry.list_models()] == live
    first = registry.list_models(limit=2)
    assert [head.name for head in first] == ["m0", "m4"]
    assert [head.name for head in registry.list_models(limit=2, after="m4")] == ["m5", "m6"]
    assert [head.name for head in registry.list_models(limit=2, after="m6")] == ["m7"]
    assert registry.list_models(after="m7") == []


def test_pages_are_complete_for_any_names(registry: Registry) -> None:
    names = {"a", "a-b", "a.b", "a0", "aa", "A", "a_b"}
    for name in names:
        registry.create_model(name, actor="a")
    seen: list[str] = []
    while page := registry.list_models(limit=2, after=seen[-1] if seen else ""):
        seen += [head.name for head in page]
    assert len(seen) == len(names)
    assert set(seen) == names


def test_missing_model_error_suggests_similar_names(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the registry has no models yet"):
        registry.get_model("resnet")
    publish(registry, tmp_path, b"1", model="resnet50", aliases=["champion"])
    with pytest.raises(NotFoundError, match="did you mean 'resnet50'") as caught:
        registry.get_model("resnet-50")
    assert caught.value.details["suggestions"] == ["resnet50"]
    with pytest.raises(NotFoundError, match="existing models: resnet50"):
        registry.get_model("zzz")
    with pytest.raises(NotFoundError, match="its versions: 1"):
        registry.resolve(Reference("resnet50", version=2))
    with pytest.raises(NotFoundError, match="did you mean 'champion'"):
        registry.resolve(Reference("resnet50", alias="champoin"))
    registry.delete_model("resnet50", actor="a")
    with pytest.raises(NotFoundError, match="the registry has no models yet"):
        registry.get_model("resnet-50")
    with pytest.raises(NotFoundError):
        registry.history("never")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a:1", "a@b", "a~candidate", "x" * 129, "é"])
def test_invalid_names_are_rejected_before_the_store(registry: Registry, store: ObjectStore, name: str) -> None:
    with pytest.raises(InvalidNameError):
        registry.create_model(name, actor="a")
    with pytest.raises(InvalidNameError):
        registry.get_model(name)
    with pytest.raises(InvalidNameError):
        registry.deployments.get(name)
    assert list(store.list("")) == []


def test_folder_created_by_hand_is_ignored(registry: Registry, store: ObjectStore) -> None:
    store.create("models/not a model/notes.txt", b"x")
    store.create("deployments/not a model/notes.txt", b"x")
    registry.create_model("m", actor="a")
    assert [head.name for head in registry.list_models()] == ["m"]
    assert registry.deployments.list() == []
    assert registry.collect(dry_run=False).blobs_deleted == 0


# Versions


def test_versions_are_published_resolved_and_read(registry: Registry, tmp_path: Path) -> None:
    one = publish(registry, tmp_path, b"one", aliases=["champion"])
    two = publish(registry, tmp_path, b"two")
    assert (one.number, two.number) == (1, 2)
    assert registry.resolve(Reference.parse("m")) == two
    assert registry.resolve(Reference.parse("m:1")) == one
    assert registry.resolve(Reference.parse("m@champion")) == one
    (file,) = registry.manifest("m", 2).files
    assert registry.read_blob(file.sha256) == b"two"
    with registry.open_blob(file.sha256) as stream:
        assert stream.read() == b"two"
    assert registry.fetch(file).read_bytes() == b"two"
    with registry.checkout(registry.manifest("m", 1)) as files:
        assert {path: local.read_bytes() for path, local in files.items()} == {"model.onnx": b"one"}
    assert registry.samples(registry.manifest("m", 1)) == ()
    assert reasons(registry) == ["publish version 2", "publish version 1, alias champion -> 1"]


def test_resolving_a_model_without_versions_fails(registry: Registry) -> None:
    registry.create_model("m", actor="a")
    with pytest.raises(NotFoundError, match="no versions"):
        registry.resolve(Reference("m"))


def test_a_deleted_number_is_never_used_again(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1")
    publish(registry, tmp_path, b"2")
    registry.delete_version("m", 2, actor="a", reason="broken")
    with pytest.raises(NotFoundError, match="was deleted"):
        registry.resolve(Reference("m", version=2))
    with pytest.raises(NotFoundError, match="was deleted"):
        registry.delete_version("m", 2, actor="a")
    assert registry.resolve(Reference("m")).number == 1
    assert publish(registry, tmp_path, b"3").number == 3
    assert reasons(registry)[1] == "delete version 2: broken"


def test_republished_model_continues_its_version_numbers(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1", aliases=["champion"])
    registry.delete_model("m", actor="a")
    assert publish(registry, tmp_path, b"1").number == 2
    head = registry.get_model("m")
    assert [entry.number for entry in head.live_versions] == [2]
    assert head.aliases == {}


# Aliases


def test_alias_can_be_moved_and_removed(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1")
    publish(registry, tmp_path, b"2")
    registry.set_alias("m", "champion", 1, actor="a")
    registry.set_alias("m", "champion", 2, actor="a", reason="better")
    registry.set_alias("m", "champion", 2, actor="a")  # already set, so no new revision
    assert registry.get_model("m").aliases == {"champion": 2}
    registry.remove_alias("m", "champion", actor="a")
    with pytest.raises(NotFoundError, match="existing aliases: none"):
        registry.remove_alias("m", "champion", actor="a")
    assert reasons(registry)[:3] == [
        "remove alias champion (was 2)",
        "alias champion 1 -> 2: better",
        "alias champion -> 1",
    ]


def test_an_alias_points_at_live_versions_only(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1")
    with pytest.raises(NotFoundError):
        registry.set_alias("m", "champion", 2, actor="a")
    with pytest.raises(InvalidNameError, match="latest"):
        registry.set_alias("m", "latest", 1, actor="a")
    with pytest.raises(InvalidInputError):
        registry.set_alias("m", "Über", 1, actor="a")


def test_a_version_with_an_alias_is_not_deleted(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"1", aliases=["champion"])
    with pytest.raises(InUseError, match="alias 'champion'"):
        registry.delete_version("m", 1, actor="a")
    registry.remove_alias("m", "champion", actor="a")
    registry.delete_version("m", 1, actor="a")
