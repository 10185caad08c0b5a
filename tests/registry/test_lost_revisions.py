"""A store that lost confirmed data: the newest revisions of a chain are missing or replaced by others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.domain.access import Scope
from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.errors import ConflictError, StoreWentBackwardsError
from controlplane.registry import lost
from controlplane.registry.chain import Chain
from controlplane.registry.condition_log import ConditionLog
from controlplane.registry.head_memory import store_id
from controlplane.registry.keys import KeyRequest
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry, publish


def chain_of(store: ObjectStore, name: str) -> Chain:
    return Chain(store, f"{name}/revisions/", guarded=True)


def lose(store: ObjectStore, name: str, *numbers: int) -> None:
    """Remove revisions, as a restore, a lagging replica of the bucket or a lifecycle rule does."""
    chain = chain_of(store, name)
    for number in numbers or [chain_head(store, name)]:
        store.delete(chain.key(number))


def chain_head(store: ObjectStore, name: str) -> int:
    head = chain_of(store, name).newest_regardless()
    return head.number if head else 0


def test_reader_that_knows_the_lost_head_blocks_all_readers(bucket: ObjectStore, tmp_path: Path) -> None:
    one, other = new_registry(bucket, tmp_path / "1"), new_registry(bucket, tmp_path / "2")
    one.create_model("net", description="v1", actor="one")
    one.update_model("net", description="v2", actor="one")
    lose(bucket, "models/net")
    with pytest.raises(
        StoreWentBackwardsError, match=r"models/net went backwards: revision 2 \(by one: change"
    ) as told:
        one.get_model("net")
    assert told.value.details == {"chain": "models/net", "lost_revision": 2}
    with pytest.raises(StoreWentBackwardsError):
        one.update_model("net", description="v3", actor="one")
    # Neither the other process nor one that starts now has seen revision 2.
    for registry in (other, new_registry(bucket, tmp_path / "3")):
        with pytest.raises(StoreWentBackwardsError, match="fsck --restore models/net"):
            registry.update_model("net", labels={"owner": "other"}, actor="other")
    assert [revision.number for revision in one.history("net")] == [1]


def test_revision_written_in_place_of_a_lost_one_is_detected(bucket: ObjectStore, tmp_path: Path) -> None:
    one, other = new_registry(bucket, tmp_path / "1"), new_registry(bucket, tmp_path / "2")
    one.create_model("net", description="v1", actor="one")
    one.update_model("net", description="v2", actor="one")
    lose(bucket, "models/net")
    other.update_model("net", labels={"owner": "other"}, actor="other")  # no instance has noticed yet
    with pytest.raises(StoreWentBackwardsError, match="is now at revision 2 by other"):
        one.update_model("net", description="v3", actor="one")
    other.history("net")
    with pytest.raises(StoreWentBackwardsError):
        other.get_model("net")


def test_loss_is_detected_by_parents_after_further_commits(bucket: ObjectStore, tmp_path: Path) -> None:
    for ahead in (1, 3):
        name = f"net{ahead}"
        one, other = new_registry(bucket, tmp_path / "1"), new_registry(bucket, tmp_path / "2")
        one.create_model(name, description="v1", actor="one")
        one.update_model(name, description="v2", actor="one")
        lose(bucket, f"models/{name}")
        for number in range(1 + ahead):
            other.update_model(name, description=f"o{number}", actor="other")
        with pytest.raises(StoreWentBackwardsError):
            one.get_model(name)


def test_loss_of_a_whole_chain_is_detected(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(bucket, tmp_path / "1")
    registry.create_model("net", actor="one")
    lose(bucket, "models/net")
    with pytest.raises(StoreWentBackwardsError, match="now has no revision"):
        registry.get_model("net")


def test_heads_in_the_data_folder_survive_a_restart(bucket: ObjectStore, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    before = new_registry(bucket, tmp_path / "1", heads=heads)
    publish(before, tmp_path / "f", b"1")
    publish(before, tmp_path / "f", b"2", aliases=["champion"])
    lose(bucket, "models/m")
    restarted = new_registry(bucket, tmp_path / "1", heads=heads)
    with pytest.raises(StoreWentBackwardsError):
        restarted.resolve(Reference("m", alias="champion"))
    # An instance without remembered heads cannot detect the loss; it learns of it from the note in the store.
    with pytest.raises(StoreWentBackwardsError):
        new_registry(bucket, tmp_path / "2").get_model("m")


def test_restart_with_unchanged_heads_costs_no_extra_requests(tmp_path: Path, bucket: ObjectStore) -> None:
    heads = tmp_path / "heads"
    new_registry(bucket, tmp_path / "1", heads=heads).create_model("net", actor="one")
    hooked = HookedStore(bucket)
    restarted = new_registry(hooked, tmp_path / "1", heads=heads)
    hooked.calls.clear()
    restarted.get_model("net")
    restarted.get_model("net")
    assert [operation for operation, _ in hooked.calls] == ["list", "get", "list"]


def test_another_store_at_the_same_url_is_not_a_loss(tmp_path: Path, store: ObjectStore, bucket: ObjectStore) -> None:
    heads = tmp_path / "heads"
    new_registry(store, tmp_path / "1", heads=heads).create_model("net", actor="one")
    other = new_registry(bucket, tmp_path / "1", heads=heads)
    assert store_id(store) != store_id(bucket)
    assert other.create_model("net", actor="one").name == "net"


def test_damaged_or_unwritable_head_memory_is_ignored(bucket: ObjectStore, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    new_registry(bucket, tmp_path / "1", heads=heads).create_model("net", description="v1", actor="one")
    (file,) = heads.glob("*/models/net.json")
    assert json.loads(file.read_bytes())["body"]["description"] == "v1"
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("{")
    registry = new_registry(bucket, tmp_path / "1", heads=heads)
    assert registry.get_model("net").description == "v1"
    file.unlink()
    file.mkdir()
    assert registry.update_model("net", description="v2", actor="one").description == "v2"


Decide = Callable[[Chain], object]


def went_backwards(bucket: ObjectStore, tmp_path: Path) -> tuple[Registry, Registry]:
    """Create a store at revision 2 (version 1), and a process that knows revision 4 (version 2 and its alias)."""
    one, other = new_registry(bucket, tmp_path / "1"), new_registry(bucket, tmp_path / "2")
    publish(one, tmp_path / "f", b"1", model="net")
    one.update_model("net", description="kept", actor="one")
    publish(one, tmp_path / "f", b"2", model="net")
    one.set_alias("net", "champion", 2, actor="one")
    lose(bucket, "models/net", 3, 4)
    return one, other


def test_restoring_a_lost_revision_whose_parent_is_lost_too(bucket: ObjectStore, tmp_path: Path) -> None:
    one, other = went_backwards(bucket, tmp_path)
    with pytest.raises(StoreWentBackwardsError):
        one.get_model("net")
    chain = chain_of(bucket, "models/net")
    assert [revision.number for revision in lost.lost_revisions(chain)] == [4]
    decided = lost.restore(chain, actor="operator", reason="replica lagged")
    assert (decided.number, decided.epoch) == (5, 1)
    for registry in (one, other, new_registry(bucket, tmp_path / "3")):
        head = registry.get_model("net")
        assert head.aliases == {"champion": 2}
        assert [entry.number for entry in head.live_versions] == [1, 2]
    assert one.update_model("net", description="next", actor="one").description == "next"
    assert other.history("net")[0].number == 6
    assert "restore lost revision 4: replica lagged" in [found.reason for found in one.history("net")]
    with pytest.raises(ConflictError, match="nothing to restore"):
        lost.restore(chain, actor="operator")


def test_lost_revision_with_a_free_key_is_restored_unchanged(bucket: ObjectStore, tmp_path: Path) -> None:
    one = new_registry(bucket, tmp_path / "1")
    one.create_model("net", actor="one")
    one.update_model("net", description="v2", actor="one")
    before = one.history("net")
    lose(bucket, "models/net")
    with pytest.raises(StoreWentBackwardsError):
        one.get_model("net")
    chain = chain_of(bucket, "models/net")
    assert not lost.are_back(chain, lost.lost_revisions(chain))
    assert lost.restore(chain, actor="operator") == before[0]
    assert one.history("net") == before
    assert one.update_model("net", description="v3", actor="one").description == "v3"


def test_restoring_keeps_versions_published_since_the_loss(bucket: ObjectStore, tmp_path: Path) -> None:
    one, other = new_registry(bucket, tmp_path / "1"), new_registry(bucket, tmp_path / "2")
    publish(one, tmp_path / "f", b"1", model="net")
    one.update_model("net", description="lost", actor="one")
    lose(bucket, "models/net")
    publish(other, tmp_path / "f", b"2", model="net")
    with pytest.raises(StoreWentBackwardsError):
        one.get_model("net")
    lost.restore(chain_of(bucket, "models/net"), actor="operator")
    head = other.get_model("net")
    assert head.description == "lost"
    assert [entry.number for entry in head.live_versions] == [1, 2]


def test_accepting_a_loss_does_not_reuse_lost_version_numbers(bucket: ObjectStore, tmp_path: Path) -> None:
    one, other = went_backwards(bucket, tmp_path)
    with pytest.raises(StoreWentBackwardsError):
        one.get_model("net")
    decided = lost.accept(chain_of(bucket, "models/net"), actor="operator", reason="restored from Monday")
    assert decided.number == 5
    head = one.get_model("net")
    assert head.description == "kept"
    assert [entry.number for entry in head.live_versions] == [1]
    assert head.aliases == {}
    assert publish(other, tmp_path / "f", b"3", model="net").number == 3


def test_process_paused_during_the_decision_follows_it(bucket: ObjectStore, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    new_registry(bucket, tmp_path / "0", heads=heads)
    sleeper = new_registry(bucket, tmp_path / "1", heads=heads)
    one, other = went_backwards(bucket, tmp_path)
    assert [entry.number for entry in sleeper.get_model("net").live_versions] == [1]
    publish(other, tmp_path / "f", b"x", model="net")
    publish(sleeper, tmp_path / "f", b"y", model="net")
    with pytest.raises(StoreWentBackwardsError):
        one.get_model("net")
    lost.accept(chain_of(bucket, "models/net"), actor="operator")
    restarted = new_registry(bucket, tmp_path / "1", heads=heads)
    assert restarted.get_model("net") == one.get_model("net") == sleeper.get_model("net")


def test_accepting_lost_keys_keeps_revoked_keys_revoked(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(bucket, tmp_path / "1")
    registry.keys.create(KeyRequest("root", (Scope.ADMIN,)), actor="one")
    key, _ = registry.keys.create(KeyRequest("leaked", (Scope.READ,)), actor="one")
    registry.keys.revoke(key.id, actor="one")
    lose(bucket, "keys")
    with pytest.raises(StoreWentBackwardsError, match="fsck --accept keys"):
        registry.keys.read()
    lost.accept(chain_of(bucket, "keys"), actor="operator")
    _, ring = registry.keys.read()
    assert {found.name: found.revoked_at is not None for found in ring.keys} == {"root": False, "leaked": True}


def test_accepting_the_loss_of_a_whole_deployment_removes_it(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(bucket, tmp_path / "1")
    publish(registry, tmp_path / "f", b"1", model="net")
    spec = DeploymentSpec(model="net", reference="net:1", version=1)
    registry.deployments.put(spec, after=None, actor="one", reason="deploy")
    lose(bucket, "deployments/net")
    unreadable: dict[str, str] = {}
    with pytest.raises(StoreWentBackwardsError):
        registry.deployments.get("net", fresh=True)
    assert registry.deployments.list(unreadable=unreadable) == []  # only the note is left of it
    assert "went backwards" in unreadable["net"]
    with pytest.raises(StoreWentBackwardsError):
        registry.deployments.list()
    lost.accept(chain_of(bucket, "deployments/net"), actor="operator")
    assert registry.deployments.list() == []
    assert registry.deployments.put(spec, after=None, actor="one", reason="again").spec.version == 1


def test_chain_that_caught_up_needs_no_decision(bucket: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(bucket, tmp_path / "1")
    registry.create_model("net", actor="one")
    registry.update_model("net", description="v2", actor="one")
    chain = chain_of(bucket, "models/net")
    data = bucket.get(chain.key(2))
    lose(bucket, "models/net")
    with pytest.raises(StoreWentBackwardsError):
        registry.get_model("net")
    bucket.create(chain.key(2), data)
    assert lost.are_back(chain, lost.lost_revisions(chain))
    lost.forget_notes(chain)
    assert registry.get_model("net").description == "v2"


def test_loss_is_refused_locally_if_the_store_is_not_writable(bucket: ObjectStore, tmp_path: Path) -> None:
    def full(operation: str, key: str) -> None:
        if operation == "create" and "!lost" in key:
            raise StoreWentBackwardsError("stands for any store error")

    hooked = HookedStore(bucket, before=full)
    registry = new_registry(hooked, tmp_path / "1")
    registry.create_model("net", actor="one")
    lose(bucket, "models/net")
    with pytest.raises(StoreWentBackwardsError, match="models/net went backwards"):
        registry.update_model("net", description="v2", actor="one")


def test_loss_in_a_pruned_chain_is_reported_without_a_note(bucket: ObjectStore) -> None:
    chain = Chain(bucket, "lease/", pruned=True)
    known = None
    for number in range(4):
        known = chain.append({"n": number}, after=known, actor="a", reason="r")
    chain.prune(2)
    bucket.delete(chain.key(4))
    with pytest.raises(StoreWentBackwardsError):
        chain.refresh(known)
    assert chain.notes() == []
    head = chain.head()
    assert head is not None
    assert head.number == 3


def test_lost_conditions_are_written_again(bucket: ObjectStore) -> None:
    condition_log = ConditionLog(bucket)
    for number in range(3):
        assert condition_log.put("net", "part", {"n": number}, actor="a", reason="r")
    bucket.delete(Chain(bucket, "conditions/net/", pruned=True).key(3))
    assert condition_log.put("net", "part", {"n": 3}, actor="a", reason="r")
    assert ConditionLog(bucket).all() == {"net": {"part": {"n": 3}}}
