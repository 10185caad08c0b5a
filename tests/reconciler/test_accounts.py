"""The ledger of one server and its queue, from readings: what an older reading may say, and what is kept for ever."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode, Switch
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.memory.eviction import EvictionRules, policy_named
from controlplane.memory.types import Footprint, ModelMemory, Slot
from controlplane.reconciler.accounts import Accounts
from controlplane.reconciler.actions import Action, Load, Prove, Unload
from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.queueing import LoadQueue
from controlplane.reconciler.sizing import Sizes
from controlplane.reconciler.steward import Measurement, Steward
from controlplane.reconciler.tenants import Request, Tenant
from controlplane.reconciler.types import Mark, Target
from controlplane.reconciler.units import Unit
from controlplane.reconciler.wishes import Wish, Wishes
from controlplane.settings import MemorySettings
from controlplane.triton.embedded.processes import InstanceMemory
from controlplane.triton.statistics import VersionCounters
from tests.reconciler.conftest import open_registry
from tests.support.models import publish_affine

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MIB = 1 << 20
RULES = BudgetRules({HOST: 200 * MIB})
OLD, CANDIDATE = Slot("m", 1), Slot("m~candidate", 2)


def reading(*slots: Slot, requests: int | None = None) -> Reading:
    """What a look at the server shows with these loaded, 70 MiB each."""
    host = DeviceReading(HOST, DeviceKind.HOST, 8192 * MIB, 1024 * MIB)
    instances = {(slot.triton_name, slot.version): InstanceMemory(1, 70 * MIB, 70 * MIB) for slot in slots}
    counters = None if requests is None else {("m", 1): VersionCounters(requests, NOW, 0.0)}
    return Reading((host,), instances, 100 * MIB, counters=counters)


def with_both(accounts: Accounts) -> None:
    """Version 1 answers, its successor's candidate is loaded beside it."""
    accounts.take(reading(), 1, NOW)
    for slot in (OLD, CANDIDATE):
        accounts.ledger = accounts.ledger.resident(slot, {HOST: 70 * MIB}, NOW)
    accounts.take(reading(OLD, CANDIDATE), 2, NOW)


def test_a_reading_that_began_before_the_newest_brings_its_counters_and_nothing_else(tmp_path: Path) -> None:
    steward = Steward("s", RULES, MemorySettings(), open_registry(tmp_path).footprints, told=True)
    accounts, tenant = steward.accounts, steward.tenant("m")
    with_both(accounts)
    tenant.loads = 1
    late = reading(OLD, CANDIDATE, requests=4)  # began at step 3, and is long on its way
    accounts.left(CANDIDATE, 5, NOW)
    steward.take(reading(OLD), [], 5, NOW)
    assert accounts.ledger.free(HOST) == 130 * MIB
    steward.take(late, [], 3, NOW)
    assert accounts.ledger.free(HOST) == 130 * MIB
    assert (accounts.ledger.unaccounted(HOST), accounts.ledger.noted[HOST]) == (0, 0)
    assert accounts.instances.keys() == {("m", 1)}
    assert steward.counters["requests"] == 4
    steward.take(reading(OLD, CANDIDATE), [], 6, NOW)
    assert accounts.ledger.unaccounted(HOST) == 70 * MIB, "a newer one counts"


def test_after_a_restart_the_first_reading_counts_whenever_it_began() -> None:
    accounts = Accounts(RULES, told=True)
    with_both(accounts)
    accounts.restarted()
    assert not accounts.known
    accounts.take(reading(), 1, NOW)
    assert accounts.known
    assert accounts.ledger.free(HOST) == 200 * MIB


@pytest.mark.parametrize("switch", [Switch.AUTO, Switch.BESIDE])
def test_memory_that_is_being_given_back_is_waited_for_and_no_reason_for_a_gap(switch: Switch, tmp_path: Path) -> None:
    accounts = Accounts(BudgetRules({HOST: 300 * MIB}), told=True)
    pinned = Slot("p", 1), Slot("p", 2)
    accounts.take(reading(), 1, NOW)
    for slot in (OLD, *pinned):
        accounts.ledger = accounts.ledger.resident(slot, {HOST: 70 * MIB}, NOW)
    accounts.take(reading(OLD, *pinned), 2, NOW)
    accounts.left(pinned[0], 3, NOW)
    need = {HOST: Footprint(100 * MIB)}
    models = {
        "m": ModelMemory("m", Mode.RESIDENT, 2, need, loaded=True, loaded_at=NOW),
        "p": ModelMemory("p", Mode.PINNED, 2, {HOST: Footprint(70 * MIB)}, loaded=True, loaded_at=NOW),
    }
    request = Request(Slot("m", 2), need, NOW, NOW + timedelta(minutes=1), switch=switch)
    tenants = {"m": Tenant("m", request=request), "p": Tenant("p")}
    counters: Counter[str] = Counter()
    queue = LoadQueue(
        "s",
        MemorySettings(),
        policy=policy_named("cost"),
        rules=EvictionRules(),
        accounts=accounts,
        sizes=Sizes(open_registry(tmp_path).footprints),
        tenants=tenants,
        models=models,
        counters=counters,
    )
    units = {model: Unit("s", model, Facts(loaded=frozenset({1}))) for model in models}
    moves = queue.arrange(units, NOW)
    assert (moves.refused, moves.waiting, counters["gaps"]) == ([], ["m"], 0)
    accounts.take(reading(OLD, pinned[1]), 3, NOW)
    assert queue.arrange(units, NOW).go == ["m"]
    assert tenants["m"].request is request
    assert request.granted


class Elsewhere:
    """A server whose processes nobody sees, with one model of two versions of which the second is wanted."""

    def __init__(self, work: Path, devices: tuple[DeviceReading, ...], rules: BudgetRules) -> None:
        registry = open_registry(work)
        before = None
        for scale in (1.0, 2.0):
            version = publish_affine(registry, "m", work, scale=scale)
            spec = DeploymentSpec(
                model="m", reference=f"m:{version}", version=version, settings=DeploymentSettings(mode=Mode.PINNED)
            )
            before = registry.deployments.put(spec, after=before, actor="test", reason="")
        wish = Wishes(registry).read("m")
        assert wish is not None
        self.wish: Wish = wish
        self.steward = Steward("s", rules, MemorySettings(), registry.footprints, told=True)
        self.unit = Unit("s", "m", Facts())
        self.reading = Reading(devices)
        self.step = 1
        self.steward.take(self.reading, [], self.step, NOW)

    def target(self, version: int) -> Target:
        return next(target for target in self.wish.targets if target.version == version)

    def do(self, action: Action, *, grown: int = 0, mark: Mark | None = None) -> list[Measurement]:
        """Do it, as far as the steward hears of it, and return what was measured."""
        steward, unit = self.steward, self.unit
        if isinstance(action, Load):
            need = steward.queue.needs(self.wish, unit, action)
            assert need is not None
            steward.judge([(self.wish, unit)], NOW)
            steward.queue.ask("m", need, NOW)
            assert steward.queue.arrange({"m": unit}, NOW).go == ["m"]
        steward.began(unit, action, NOW)
        self.step += 2
        growth = {device.name: grown for device in self.reading.devices or ()}
        measured = steward.ended(self.wish, unit, Outcome(action, mark=mark), self.reading, growth, self.step, NOW)
        assert unit.facts is not None
        unit.facts = unit.facts.after(action) if mark is None else unit.facts
        return measured


def test_what_a_failed_candidate_had_is_never_taken_for_another_versions(tmp_path: Path) -> None:
    host = DeviceReading(HOST, DeviceKind.HOST, 8192 * MIB, 1024 * MIB)
    server = Elsewhere(tmp_path, (host,), BudgetRules({HOST: 4096 * MIB}))
    old, new = server.target(1), server.target(2)
    load = Load(old, (1,), "test")
    server.do(load, grown=50 * MIB)
    (measured,) = server.do(Prove(old, candidate=False, because="test"), mark=Mark.PASSED)
    assert (measured.key.version, measured.measured.bytes, measured.measured.by) == (1, 50 * MIB, "device")
    server.do(Load(new, (2,), "test", candidate=True), grown=90 * MIB)
    server.do(Prove(new, candidate=True, because="test"), mark=Mark.WRONG)
    server.do(Unload(candidate=True, because="test"))
    server.do(Unload(candidate=False, because="test"))
    server.do(load)  # others move meanwhile: the device's use says nothing of it
    assert server.do(Prove(old, candidate=False, because="test"), mark=Mark.PASSED) == []
