"""The ledger of one server and its queue under readings, including outdated ones."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.domain.deployment import Mode, Switch
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.lifecycle.actions import Load, Prove, Unload
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.load_queue import LoadQueue
from controlplane.memory.model_state import MemoryRequirement, ModelMemoryState
from controlplane.memory.policy.eviction import EvictionRules, policy_named
from controlplane.memory.policy.types import Footprint, HoldingState, ModelMemory, Slot
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.memory.sizing import FootprintResolver
from controlplane.servers.readings import ServerReading
from controlplane.settings import MemorySettings
from controlplane.triton.embedded.processes import InstanceMemory
from controlplane.triton.statistics import VersionCounters
from tests.reconciler.conftest import open_registry
from tests.reconciler.served import HOST_READING, MIB, NOW, Served, gpu

RULES = BudgetRules({HOST: 200 * MIB})
OLD, CANDIDATE = Slot("m", 1), Slot("m~candidate", 2)


def reading(*slots: Slot, requests: int | None = None) -> ServerReading:
    """Return a reading of a server that has these versions loaded, 70 MiB each."""
    instances = {(slot.triton_name, slot.version): InstanceMemory(1, 70 * MIB, 70 * MIB) for slot in slots}
    counters = None if requests is None else {("m", 1): VersionCounters(requests, NOW, 0.0)}
    return ServerReading((HOST_READING,), instances, 100 * MIB, counters=counters)


def with_both(accounts: LedgerSync) -> None:
    """Load version 1 and the candidate of its successor."""
    accounts.ingest(reading(), 1, NOW)
    for slot in (OLD, CANDIDATE):
        accounts.ledger = accounts.ledger.resident(slot, {HOST: 70 * MIB}, NOW)
    accounts.ingest(reading(OLD, CANDIDATE), 2, NOW)


def test_an_outdated_reading_contributes_only_its_counters(tmp_path: Path) -> None:
    scheduler = MemoryScheduler("s", RULES, MemorySettings(), open_registry(tmp_path).footprints, told=True)
    accounts, model_state = scheduler.accounts, scheduler.model_state("m")
    with_both(accounts)
    model_state.stats.loads = 1
    late = reading(OLD, CANDIDATE, requests=4)  # began at step 3 and arrives late
    accounts.mark_unloading(CANDIDATE, 5, NOW)
    scheduler.take(reading(OLD), [], 5, NOW)
    assert accounts.ledger.free(HOST) == 130 * MIB
    scheduler.take(late, [], 3, NOW)
    assert accounts.ledger.free(HOST) == 130 * MIB
    assert (accounts.ledger.unaccounted(HOST), accounts.ledger.noted[HOST]) == (0, 0)
    assert accounts.instances.keys() == {("m", 1)}
    assert scheduler.counters["requests"] == 4
    scheduler.take(reading(OLD, CANDIDATE), [], 6, NOW)
    assert accounts.ledger.unaccounted(HOST) == 70 * MIB, "a newer reading counts"


def test_zeros_of_a_server_that_just_started_are_ignored() -> None:
    zeros = ServerReading((DeviceReading(HOST, DeviceKind.HOST, 0, None, error="the server's metrics report 0"),))
    accounts = LedgerSync(RULES, told=True)
    accounts.ingest(zeros, 1, NOW)
    assert not accounts.known, "zeros are not used for decisions"
    accounts.ingest(reading(), 2, NOW + timedelta(seconds=2))
    assert accounts.ledger.free(HOST) == 200 * MIB
    accounts.ingest(zeros, 3, NOW + timedelta(seconds=60))
    assert accounts.ledger.budgets[HOST].bytes == 200 * MIB, "the last known budget stays valid"
    accounts.ingest(zeros, 4, NOW + timedelta(seconds=71))
    assert accounts.ledger.budgets[HOST].bytes == 0, "the host memory is unavailable"

    never = LedgerSync(RULES, told=True)
    for step, seconds in enumerate((0, 5, 11)):
        never.ingest(zeros, step, NOW + timedelta(seconds=seconds))
    assert never.known, "a server without host readings does not block decisions"


def test_the_first_reading_after_a_restart_counts_whenever_it_began() -> None:
    accounts = LedgerSync(RULES, told=True)
    with_both(accounts)
    accounts.restarted()
    assert not accounts.known
    accounts.ingest(reading(), 1, NOW)
    assert accounts.known
    assert accounts.ledger.free(HOST) == 200 * MIB


@pytest.mark.parametrize("update_strategy", [Switch.AUTO, Switch.ROLLING])
def test_memory_that_is_being_freed_causes_no_gap(update_strategy: Switch, tmp_path: Path) -> None:
    accounts = LedgerSync(BudgetRules({HOST: 300 * MIB}), told=True)
    pinned = Slot("p", 1), Slot("p", 2)
    accounts.ingest(reading(), 1, NOW)
    for slot in (OLD, *pinned):
        accounts.ledger = accounts.ledger.resident(slot, {HOST: 70 * MIB}, NOW)
    accounts.ingest(reading(OLD, *pinned), 2, NOW)
    accounts.mark_unloading(pinned[0], 3, NOW)
    need = {HOST: Footprint(100 * MIB)}
    models = {
        "m": ModelMemory("m", Mode.RESIDENT, 2, need, loaded=True, loaded_at=NOW),
        "p": ModelMemory("p", Mode.PINNED, 2, {HOST: Footprint(70 * MIB)}, loaded=True, loaded_at=NOW),
    }
    model_states = {"m": ModelMemoryState("m"), "p": ModelMemoryState("p")}
    counters: Counter[str] = Counter()
    queue = LoadQueue(
        "s",
        MemorySettings(),
        policy=policy_named("cost"),
        rules=EvictionRules(),
        accounts=accounts,
        sizes=FootprintResolver(open_registry(tmp_path).footprints),
        model_states=model_states,
        models=models,
        contenders=models,
        unjudged=set(),
        counters=counters,
    )
    request = queue.ask("m", MemoryRequirement(Slot("m", 2), {2: need}, update_strategy=update_strategy), NOW)
    units = {model: Replica("s", model, ReplicaObservation(loaded=frozenset({1}))) for model in models}
    moves = queue.schedule(units, NOW)
    assert (moves.refused, moves.waiting, counters["gaps"]) == ([], ["m"], 0)
    accounts.ingest(reading(OLD, pinned[1]), 3, NOW)
    assert queue.schedule(units, NOW).go == ["m"]
    assert model_states["m"].ticket.request is request
    assert request.granted


def test_memory_of_a_failed_candidate_is_not_attributed_to_another_version(tmp_path: Path) -> None:
    server = Served(tmp_path, (HOST_READING,), BudgetRules({HOST: 4096 * MIB}))
    old, new = server.target(1), server.target(2)
    load = Load(old, (1,), "test")
    server.do(load, grown=50 * MIB)
    (measured,) = server.do(Prove(old, candidate=False, because="test"), mark=ProofStatus.PASSED)
    assert (measured.key.version, measured.measured.bytes, measured.measured.by) == (1, 50 * MIB, "device")
    server.do(Load(new, (2,), "test", candidate=True), grown=90 * MIB)
    server.do(Prove(new, candidate=True, because="test"), mark=ProofStatus.MISMATCH)
    server.do(Unload(candidate=True, because="test"))
    server.do(Unload(candidate=False, because="test"))
    server.do(load)  # other loads run at the same time, so the growth of the device is not measured
    assert server.do(Prove(old, candidate=False, because="test"), mark=ProofStatus.PASSED) == []


def booked(server: Served) -> dict[tuple[str, int, str], HoldingState]:
    """Return the holdings of the ledger with their states."""
    holdings = server.scheduler.accounts.ledger.holdings
    return {(held.slot.triton_name, held.slot.version, held.device): held.state for held in holdings}


@pytest.fixture
def two_gpus(tmp_path: Path) -> Served:
    """A server with both versions loaded on the first of two GPUs, as in a bake window."""
    rules = BudgetRules(dict.fromkeys((HOST, "gpu:0", "gpu:1"), 12288 * MIB))
    server = Served(tmp_path, (HOST_READING, gpu(0), gpu(1)), rules)
    server.scheduler.assignment("m", ("gpu:0",))
    server.do(Load(server.target(1), (1,), "test"))
    server.do(Load(server.target(2), (1, 2), "test"))
    return server


def test_two_versions_reloaded_on_another_gpu_are_counted_there_separately(two_gpus: Served) -> None:
    scheduler, before = two_gpus.scheduler, two_gpus.scheduler.accounts.ledger
    sizes = {held.slot.version: held.bytes for held in before.holdings}
    assert booked(two_gpus) == dict.fromkeys([("m", 1, "gpu:0"), ("m", 2, "gpu:0")], HoldingState.RESIDENT)
    scheduler.assignment("m", ("gpu:1",))
    two_gpus.do(Load(two_gpus.target(2), (1, 2), "it is now assigned to gpu:1", reload=True))
    ledger = scheduler.accounts.ledger
    assert {held.slot.version: held.bytes for held in ledger.of_model("m") if held.device == "gpu:1"} == sizes
    assert {held.device for held in ledger.of_model("m")} == {"gpu:1"}
    # The reading at the end of the load does not show whether Triton has ended the old instances.
    assert ledger.held("gpu:0", HoldingState.UNLOADING) == sum(sizes.values()) == ledger.held("gpu:0")
    scheduler.take(two_gpus.reading, [], two_gpus.step, NOW)  # a reading that began before the load ended
    assert scheduler.accounts.ledger.held("gpu:0") == sum(sizes.values())
    two_gpus.look(two_gpus.reading)
    assert booked(two_gpus) == dict.fromkeys([("m", 1, "gpu:1"), ("m", 2, "gpu:1")], HoldingState.RESIDENT)


def test_joint_growth_of_two_versions_is_not_attributed_to_one(tmp_path: Path) -> None:
    server = Served(tmp_path, (HOST_READING,), BudgetRules({HOST: 4096 * MIB}))
    server.do(Load(server.target(2), (1, 2), "after a restart in the bake window"), grown=500 * MIB)
    one, other = server.scheduler.accounts.ledger.of_model("m")
    assert {one.slot.version, other.slot.version} == {1, 2}
    needed = server.scheduler.size(server.desired_deployment.prepared[server.target(2)], "m").footprint.reserve_bytes
    assert one.bytes == other.bytes == needed
    assert server.do(Prove(server.target(2), candidate=False, because="test"), mark=ProofStatus.PASSED) == []


def test_growth_during_a_reload_in_place_is_no_footprint(tmp_path: Path) -> None:
    server = Served(tmp_path, (HOST_READING,), BudgetRules({HOST: 4096 * MIB}))
    new = server.target(2)
    server.do(Load(new, (2,), "test"), grown=400 * MIB)
    assert len(server.do(Prove(new, candidate=False, because="test"), mark=ProofStatus.PASSED)) == 1
    server.do(Load(new, (2,), "version 2 failed its proof", reload=True), grown=3 * MIB)
    assert [held.bytes for held in server.scheduler.accounts.ledger.of(Slot("m", 2))] != [3 * MIB]
    assert server.do(Prove(new, candidate=False, because="test"), mark=ProofStatus.PASSED) == []


@pytest.mark.parametrize("reload", [False, True])
def test_growth_during_a_switch_is_no_footprint(reload: bool, tmp_path: Path) -> None:
    server = Served(tmp_path, (HOST_READING,), BudgetRules({HOST: 4096 * MIB}))
    server.do(Load(server.target(1), (1,), "test"), grown=400 * MIB)
    server.do(Load(server.target(2), (2,), "version 2 must be active", reload=reload), grown=3 * MIB)
    assert [held.bytes for held in server.scheduler.accounts.ledger.of(Slot("m", 2))] != [3 * MIB]
    assert server.do(Prove(server.target(2), candidate=False, because="test"), mark=ProofStatus.PASSED) == []


def test_growth_beside_a_version_that_stays_is_a_footprint(tmp_path: Path) -> None:
    server = Served(tmp_path, (HOST_READING,), BudgetRules({HOST: 4096 * MIB}))
    server.do(Load(server.target(1), (1,), "test"), grown=400 * MIB)
    server.do(Load(server.target(2), (1, 2), "version 2 must be active"), grown=300 * MIB)
    (measured,) = server.do(Prove(server.target(2), candidate=False, because="test"), mark=ProofStatus.PASSED)
    assert (measured.key.version, measured.measured.bytes) == (2, 300 * MIB)


def with_processes(**resident: int) -> ServerReading:
    """Return a reading of a supervised server where version 2 has these processes ("p" and the id), with their MiB."""
    pids = tuple(int(name[1:]) for name in resident)
    total = sum(resident.values()) * MIB
    instances = {("m", 2): InstanceMemory(len(pids), total, total, (0.0,) * len(pids), pids)} if pids else {}
    return ServerReading((HOST_READING,), instances, 100 * MIB)


def test_processes_replaced_by_a_reload_count_once_until_they_exit(tmp_path: Path) -> None:
    server = Served(tmp_path, (), BudgetRules({HOST: 4096 * MIB}))
    server.look(with_processes())
    new, accounts = server.target(2), server.scheduler.accounts
    server.do(Load(new, (2,), "test"), then=with_processes(p7=400))
    (measured,) = server.do(Prove(new, candidate=False, because="test"), mark=ProofStatus.PASSED)
    assert (measured.measured.bytes, measured.measured.peak_bytes) == (400 * MIB, 400 * MIB)
    reload = Load(new, (2,), "version 2 failed its proof", reload=True)
    server.do(reload, meanwhile=with_processes(p7=400, p8=100), then=with_processes(p7=400, p8=500))
    server.look(with_processes(p7=400, p8=500))
    held = {one.slot.triton_name: one.bytes for one in accounts.ledger.holdings}
    assert held == {"m": 500 * MIB, "m (superseded)": 400 * MIB}, "Triton has not ended the old processes yet"
    assert accounts.ledger.unaccounted(HOST) == 0
    assert server.do(Prove(new, candidate=False, because="test"), mark=ProofStatus.PASSED) == []
    server.look(with_processes(p8=500))
    assert {one.slot.triton_name: one.bytes for one in accounts.ledger.holdings} == {"m": 500 * MIB}
    (again,) = server.do(Prove(new, candidate=False, because="test"), mark=ProofStatus.PASSED)
    assert (again.measured.bytes, again.measured.peak_bytes) == (500 * MIB, 500 * MIB)
