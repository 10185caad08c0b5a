import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.errors import CommitConflictError, InUseError, NotFoundError
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry, publish


def spec(version: int, *, bake_seconds: float = 300.0, model: str = "m") -> DeploymentSpec:
    return DeploymentSpec(
        model=model,
        reference=f"{model}:{version}",
        version=version,
        settings=DeploymentSettings(bake_seconds=bake_seconds),
    )


@pytest.fixture
def published(registry: Registry, tmp_path: Path) -> Registry:
    for content in (b"1", b"2", b"3"):
        publish(registry, tmp_path, content)
    return registry


def test_a_deployment_is_put_changed_and_removed(published: Registry) -> None:
    deployments = published.deployments
    with pytest.raises(NotFoundError, match="nothing is deployed yet"):
        deployments.get("m")
    first = deployments.put(spec(1), after=None, actor="ann", reason="deploy m:1")
    assert (first.number, first.actor, first.reason, first.spec) == (1, "ann", "deploy m:1", spec(1))
    assert deployments.get("m") == first
    second = deployments.put(spec(2), after=first, actor="bob", reason="deploy m:2")
    assert deployments.list() == [second]
    assert deployments.put(spec(2), after=second, actor="bob", reason="again") == second  # nothing changes
    removed = deployments.put(spec(2).with_changes(deleted=True), after=second, actor="ann", reason="undeploy")
    assert deployments.list() == []
    assert deployments.list(deleted=True) == [removed]
    assert deployments.get("m", deleted=True) == removed
    with pytest.raises(NotFoundError):
        deployments.get("m")
    again = deployments.put(spec(3), after=None, actor="ann", reason="deploy m:3")
    assert again.number == 4
    assert [revision.number for revision in deployments.history("m")] == [4, 3, 2, 1]
    assert [revision.number for revision in deployments.history("m", limit=1, before=3)] == [2]
    assert deployments.revision("m", 1) == first
    with pytest.raises(NotFoundError, match="revision 9"):
        deployments.revision("m", 9)
    with pytest.raises(NotFoundError):
        deployments.history("never")


def test_a_change_made_from_an_old_revision_is_refused(published: Registry) -> None:
    deployments = published.deployments
    first = deployments.put(spec(1), after=None, actor="ann", reason="deploy")
    deployments.put(spec(2), after=first, actor="bob", reason="faster")
    with pytest.raises(CommitConflictError, match=r"it is now at revision 2 \(faster, by bob\)"):
        deployments.put(spec(3), after=first, actor="ann", reason="late")
    with pytest.raises(CommitConflictError, match="already deployed"):
        deployments.put(spec(3), after=None, actor="ann", reason="late")


def test_only_versions_that_exist_are_deployed(published: Registry) -> None:
    with pytest.raises(NotFoundError, match="no version 9"):
        published.deployments.put(spec(9), after=None, actor="a", reason="r")
    with pytest.raises(NotFoundError, match="model 'other' does not exist"):
        published.deployments.put(spec(1, model="other"), after=None, actor="a", reason="r")
    with pytest.raises(NotFoundError):
        published.deployments.get("m")


def test_missing_deployment_error_suggests_names(published: Registry) -> None:
    published.deployments.put(spec(1), after=None, actor="a", reason="r")
    with pytest.raises(NotFoundError, match="deployed models: m"):
        published.deployments.get("zzz")


def test_one_of_many_concurrent_deploys_wins(published: Registry) -> None:
    barrier = threading.Barrier(8)

    def deploy(number: int) -> bool:
        barrier.wait()
        try:
            published.deployments.put(spec(1 + number % 3), after=None, actor=str(number), reason="race")
        except CommitConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(deploy, range(8)))
    assert sum(won) == 1
    assert len(published.deployments.history("m")) == 1


# Versions and models that a deployment protects from deletion


def test_active_version_and_version_in_bake_window_cannot_be_deleted(published: Registry) -> None:
    first = published.deployments.put(spec(1), after=None, actor="a", reason="r")
    second = published.deployments.put(spec(2), after=first, actor="a", reason="r")
    published.deployments.put(
        second.spec.with_changes(loaded=False), after=second, actor="a", reason="another revision of version 2"
    )
    with pytest.raises(InUseError, match="it is the desired version of the deployment of m"):
        published.delete_version("m", 2, actor="a")
    with pytest.raises(InUseError, match="keeps it loaded for a rollback"):
        published.delete_version("m", 1, actor="a")
    published.delete_version("m", 3, actor="a")
    with pytest.raises(InUseError):
        published.delete_model("m", actor="a")
    assert [entry.number for entry in published.get_model("m").live_versions] == [1, 2]


def test_previous_version_can_be_deleted_without_a_bake_window(published: Registry) -> None:
    first = published.deployments.put(spec(1), after=None, actor="a", reason="r")
    published.deployments.put(spec(2, bake_seconds=0), after=first, actor="a", reason="r")
    published.delete_version("m", 1, actor="a")


def test_all_versions_can_be_deleted_after_undeploying(published: Registry) -> None:
    first = published.deployments.put(spec(1), after=None, actor="a", reason="r")
    published.deployments.put(first.spec.with_changes(deleted=True), after=first, actor="a", reason="r")
    published.delete_version("m", 1, actor="a")
    published.delete_model("m", actor="a")


# Concurrent deploying and deleting


def race(tmp_path: Path) -> tuple[MemoryStore, Registry]:
    store = MemoryStore()
    registry = new_registry(store, tmp_path / "cache")
    publish(registry, tmp_path, b"1", aliases=["champion"])
    registry.remove_alias("m", "champion", actor="a")
    publish(registry, tmp_path, b"2")
    return store, registry


def test_deploy_during_deletion_of_its_version_wins(tmp_path: Path) -> None:
    store, other = race(tmp_path)

    def deploy(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/") and not list(store.list("deployments/")):
            other.deployments.put(spec(1), after=None, actor="other", reason="r")  # just before the tombstone

    registry = new_registry(HookedStore(store, before=deploy), tmp_path / "cache")
    with pytest.raises(InUseError, match="desired version of the deployment of m"):
        registry.delete_version("m", 1, actor="a")
    assert [entry.number for entry in other.get_model("m").live_versions] == [1, 2]
    assert other.history("m")[0].reason.startswith("revert the deletion of 1")
    assert list(store.list("publishing/")) == []


def test_deploy_during_deletion_of_its_model_wins(tmp_path: Path) -> None:
    store, other = race(tmp_path)
    other.set_alias("m", "champion", 2, actor="a")

    def deploy(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/") and not list(store.list("deployments/")):
            other.deployments.put(spec(1), after=None, actor="other", reason="r")

    registry = new_registry(HookedStore(store, before=deploy), tmp_path / "cache")
    with pytest.raises(InUseError):
        registry.delete_model("m", actor="a")
    head = other.get_model("m")
    assert [entry.number for entry in head.live_versions] == [1, 2]
    assert head.aliases == {"champion": 2}


def test_version_deleted_during_its_deploy_is_not_deployed(tmp_path: Path) -> None:
    store, other = race(tmp_path)
    done: list[bool] = []

    def delete(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/") and not done:
            done.append(True)
            other.delete_version("m", 1, actor="other")  # just before the deployment's commit

    registry = new_registry(HookedStore(store, before=delete), tmp_path / "cache")
    with pytest.raises(NotFoundError, match="was deleted"):
        registry.deployments.put(spec(1), after=None, actor="a", reason="r")
    with pytest.raises(NotFoundError):
        other.deployments.get("m")
    assert other.deployments.history("m")[0].reason.startswith("revert revision 1")


def test_reverted_change_restores_the_previous_deployment(tmp_path: Path) -> None:
    store, other = race(tmp_path)
    first = other.deployments.put(spec(2), after=None, actor="a", reason="r")
    done: list[bool] = []

    def delete(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/") and not done:
            done.append(True)
            other.delete_version("m", 1, actor="other")

    registry = new_registry(HookedStore(store, before=delete), tmp_path / "cache")
    with pytest.raises(NotFoundError):
        registry.deployments.put(spec(1), after=first, actor="a", reason="r")
    assert other.deployments.get("m").spec == first.spec


def test_concurrent_deploy_and_delete_leave_no_deployed_tombstone(store: ObjectStore, tmp_path: Path) -> None:
    deployer, deleter = new_registry(store, tmp_path / "a"), new_registry(store, tmp_path / "b")
    outcomes = set()
    for turn in range(1, 16):
        publish(deployer, tmp_path, str(turn).encode())
        barrier = threading.Barrier(2)

        def deploy(version: int = turn, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                deployer.deployments.put(spec(version, bake_seconds=0), after=None, actor="a", reason="r")
            except NotFoundError:
                return False
            return True

        def delete(version: int = turn, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                deleter.delete_version("m", version, actor="b")
            except InUseError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            deployed, deleted = pool.submit(deploy), pool.submit(delete)
            outcome = (deployed.result(), deleted.result())
        outcomes.add(outcome)
        assert outcome != (True, True)
        current = deployer.deployments.list()
        for revision in current:
            deployer.get_model("m").version(revision.spec.version)  # raises if the version is deleted
            assert outcome[0]
            deployer.deployments.put(
                revision.spec.with_changes(deleted=True), after=revision, actor="a", reason="undeploy"
            )
    assert outcomes - {(False, False)}
