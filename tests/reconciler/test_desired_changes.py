"""Store reads per tick grow with the number of changes, not the number of deployments. No Triton."""

from collections import Counter
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.lifecycle.desired import DesiredDeployment, DesiredStateResolver
from controlplane.reconciler.desired_changes import DesiredChanges, Read
from controlplane.registry import changes as change_feed
from controlplane.registry.artifact import scan
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry

_X, _Y = (TensorSpec(name=name, dtype=DataType.FP32, shape=(-1, 3)) for name in "xy")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "model.onnx").write_bytes(b"never loaded here")
    scanned = scan(folder)
    signature = Signature(inputs=(_X,), outputs=(_Y,), batched=True)
    manifest = Manifest(format=Format.ONNX, files=tuple(entry for entry, _ in scanned), signature=signature)
    return manifest, {entry.sha256: path for entry, path in scanned}


class Instance:
    """The part of an instance that reads the desired state."""

    def __init__(self, store: ObjectStore, folder: Path, *, leads: bool = True, heads: Path | None = None) -> None:
        self.registry = new_registry(store, folder / "cache", head_max_age_seconds=1.0, heads=heads)
        self.desired_state = DesiredStateResolver(self.registry)
        self.leads = leads
        self.changes = DesiredChanges(self.registry, self.desired_state, follow=self._follow)
        self.ready: list[Read] = []

    def _follow(self, desired_deployment: DesiredDeployment) -> DesiredDeployment:
        moved = self.desired_state.follow_alias(desired_deployment) if self.leads else None
        return (
            (self.desired_state.read(desired_deployment.model) or desired_deployment) if moved else desired_deployment
        )

    def tick(self, *, aliased: bool = False) -> dict[str, int]:
        """Read what changed; return the numbers of the revisions by model."""
        read, unread = self.changes.read(aliased=aliased, ready=self.ready.append)
        assert not unread
        return {model: desired_deployment.revision.number for model, desired_deployment in read.items()}


def publish(registry: Registry, model: str, files: tuple[Manifest, dict[str, Path]], *aliases: str) -> None:
    registry.publish(model, *files, actor="tests", aliases=aliases)


def deploy(registry: Registry, model: str, reference: str = ":1") -> None:
    spec = DeploymentSpec(model=model, reference=f"{model}{reference}", version=1)
    registry.deployments.put(spec, after=None, actor="tests", reason="deploy")


def toggle(registry: Registry, model: str) -> None:
    before = registry.deployments.get(model, fresh=True)
    spec = before.spec.with_changes(loaded=not before.spec.loaded)
    registry.deployments.put(spec, after=before, actor="tests", reason="toggle")


def fill(registry: Registry, count: int, files: tuple[Manifest, dict[str, Path]]) -> None:
    for number in range(count):
        publish(registry, f"m{number}", files)
        deploy(registry, f"m{number}")


def test_requests_per_tick_are_equal_with_50_and_500_deployments(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    costs: dict[int, tuple[Counter[str], Counter[str]]] = {}
    for count in (50, 500):
        store = HookedStore(MemoryStore())
        writer = new_registry(store.inner, tmp_path / "w")
        fill(writer, count, files)
        instance = Instance(store, tmp_path / str(count))
        assert len(instance.tick()) + sum(map(len, instance.ready)) >= count
        instance.tick()
        store.calls.clear()
        assert instance.tick() == {}
        at_rest = Counter(operation for operation, _ in store.calls)
        toggle(writer, "m7")
        store.calls.clear()
        assert instance.tick() == {"m7": 2}
        costs[count] = at_rest, Counter(operation for operation, _ in store.calls)
    assert costs[50] == costs[500]
    assert costs[50][0] == {"list": 1}


def test_start_reads_each_deployment_a_fixed_number_of_times(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    store = HookedStore(MemoryStore())
    fill(new_registry(store.inner, tmp_path / "w"), 60, files)
    instance = Instance(store, tmp_path / "i", heads=tmp_path / "heads")
    assert len(instance.tick()) == 60
    # The heads of the deployment and of the model, and the manifest, which all deployments share here.
    assert len(store.calls) < 60 * 2 + 40
    store.calls.clear()
    again = Instance(store, tmp_path / "i", heads=tmp_path / "heads")
    assert len(again.tick()) == 60
    assert len(store.calls) < 20


def test_alias_moved_by_another_process_is_followed_at_the_next_tick(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    store = MemoryStore()
    writer = new_registry(store, tmp_path / "w")
    publish(writer, "net", files, "champion")
    deploy(writer, "net", "@champion")
    leader = Instance(store, tmp_path / "l")
    standby = Instance(store, tmp_path / "s", leads=False)
    assert leader.tick() == standby.tick() == {"net": 1}
    publish(writer, "net", files, "champion")
    assert leader.tick() == {"net": 2}
    assert standby.tick() == {"net": 2}
    # The next leader follows changes from the time without a leader.
    publish(writer, "net", files, "champion")
    assert standby.tick() == {"net": 2}
    standby.leads = True
    assert standby.tick(aliased=True) == {"net": 3}


def test_commit_after_its_entry_was_read_is_read_at_the_next_tick(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    inner = MemoryStore()
    fill(new_registry(inner, tmp_path / "w"), 2, files)
    instance = Instance(inner, tmp_path / "i")
    instance.tick()
    seen: list[dict[str, int]] = []

    def tick(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/"):
            seen.append(instance.tick())

    toggle(new_registry(HookedStore(inner, before=tick), tmp_path / "slow"), "m0")
    assert seen == [{"m0": 1}]
    assert instance.tick() == {"m0": 2}
    instance.tick()
    assert instance.tick() == {}


def test_entry_without_a_commit_is_forgotten_in_time(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    writer = new_registry(store, tmp_path / "w")
    fill(writer, 1, files)
    instance = Instance(store, tmp_path / "i")
    instance.tick()
    writer.changes.announce("deployments/m0", 2)
    assert instance.tick() == instance.tick() == {"m0": 1}
    later = change_feed.steady() + change_feed.OPEN_SECONDS + 1
    for module in ("changes", "heads", "sweep"):
        monkeypatch.setattr(f"controlplane.registry.{module}.steady", lambda: later)
    instance.tick()
    assert instance.tick() == {}


def test_unreadable_deployment_is_retried_and_does_not_block_others(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    store = MemoryStore()
    writer = new_registry(store, tmp_path / "w")
    fill(writer, 3, files)
    toggle(writer, "m1")
    head = next(store.list("deployments/m1/", limit=1)).key
    whole = store.get(head)
    store.delete(head)
    store.create(head, b"not a revision")
    instance = Instance(store, tmp_path / "i")
    read, unread = instance.changes.read(aliased=False, ready=instance.ready.append)
    assert (sorted(read), sorted(unread)) == (["m0", "m2"], ["m1"])
    store.delete(head)
    store.create(head, whole)
    assert instance.tick() == {"m1": 2}


def test_prepared_versions_of_idle_deployments_take_little_memory(
    tmp_path: Path, files: tuple[Manifest, dict[str, Path]]
) -> None:
    registry = new_registry(MemoryStore(), tmp_path / "w")
    fill(registry, 1, files)
    desired_deployment = DesiredStateResolver(registry).read("m0")
    assert desired_deployment is not None
    prepared = desired_deployment.prepared[desired_deployment.wanted]
    assert len(prepared._packed) < 4096
    assert prepared.manifest.signature == files[0].signature
    assert prepared.config["parameters"]
