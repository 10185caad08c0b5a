"""Measurements of rollouts by instances, stored in the bucket."""

from controlplane.domain.evidence import ArmCounts, Evidence
from controlplane.registry.rollout_stats import PREFIX, RolloutStats
from controlplane.storage.base import ObjectStore


def requests(count: int) -> Evidence:
    return Evidence(new=ArmCounts(requests=count))


def test_a_replica_reads_the_sum_of_all_others(store: ObjectStore) -> None:
    one, two, three = (RolloutStats(store, name) for name in ("one", "two", "three"))
    assert one.others("m", "r") == Evidence()
    for count in (3, 7):
        one.put("m", "r", requests(count))
    two.put("m", "r", requests(20))
    assert one.others("m", "r").new.requests == 20
    assert two.others("m", "r").new.requests == 7, "the newest of an instance counts, not the sum of what it wrote"
    assert three.others("m", "r").new.requests == 27, "also of instances that are gone"
    assert three.others("m", "another").new.requests == 0


def test_old_measurements_are_pruned_and_removed_with_the_rollout(store: ObjectStore) -> None:
    log = RolloutStats(store, "one")
    for count in range(1, 30):
        log.put("m", "r", requests(count))
    log.put("m", "s", requests(1))
    assert len(list(store.list(f"{PREFIX}m/r/"))) <= 2
    log.forget("m", "r")
    assert list(store.list(f"{PREFIX}m/r/")) == []
    assert RolloutStats(store, "two").others("m", "s").new.requests == 1
