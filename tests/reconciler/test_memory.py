"""Memory is reserved before it is used; on a real Triton with budgets too small for all models."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, Switch
from controlplane.domain.states import Phase
from controlplane.registry.registry import Registry
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.repository import ModelRepository
from tests.reconciler.memory_harness import MIB, MemoryHarness, embedded_triton, memory_harness, small
from tests.support.models import publish_affine

pytestmark = pytest.mark.triton

TWO = 200 * MIB
"""Room for two of the small models (about 70 MiB each, reserved with their error), not for three."""


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    async with embedded_triton(tmp_path) as server:
        yield server


async def test_on_demand_model_loads_at_first_use_and_unloads_when_idle(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        status = await harness.deploy("m", 2.0, **small("m", keep_alive_seconds=1.0))
        assert status.phase is Phase.UNLOADED
        assert "on demand" in status.message
        assert harness.view("m").state == "unloaded"
        loads = await asyncio.gather(*(harness.load("m") for _ in range(5)))
        assert {status.phase for status in loads} == {Phase.READY}
        assert harness.view("m").loads == 1, "five requests share one load"
        assert await harness.infer("m") == 2.0
        await harness.until("it expires", lambda: harness.view("m").state == "unloaded")
        assert embedded.processes_of("m") == []
        assert harness.memory.devices[0].resident_bytes == 0
        assert "not used for 1 s" in harness.memory.evictions[0].why


def last_used(harness: MemoryHarness, model: str) -> datetime:
    used = harness.view(model).last_used_at
    assert used is not None
    return used


async def test_requests_on_tritons_port_count_as_use(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    # Models that were evicted before stay longer than the minimum: with a short minimum only their use counts.
    async with memory_harness(
        registry, embedded, tmp_path, TWO, eviction_policy="lru", minimum_residence_seconds=0.01
    ) as harness:
        for number, model in enumerate("abc", 1):
            await harness.deploy(model, float(number), **small(model, keep_alive_seconds=None))
        await harness.load("a")
        await harness.load("b")
        assert await harness.infer("a") == 1.0
        await harness.until("the use is seen", lambda: last_used(harness, "a") > last_used(harness, "b"))
        assert (await harness.load("c")).phase is Phase.READY
        assert harness.loaded() == ["a", "c"]
        (record,) = harness.memory.evictions
        assert (record.victim, record.for_model) == ("b", "c")
        assert record.bytes["host"] > 50 * MIB
        why = harness.reconciler.why("b")
        assert why is not None
        assert why.servers[0].evictions == (record,)
        assert why.servers[0].needed["host"] > 50 * MIB


async def test_measured_footprint_replaces_estimate_and_is_stored(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, 1024 * MIB) as harness:
        await harness.deploy("m", 2.0, resident_mib=40)
        (footprint,) = harness.view("m").footprint
        await harness.until("it was measured", lambda: harness.view("m").footprint[0].source == "measured")
        (footprint,) = harness.view("m").footprint
        assert 100 * MIB < footprint.bytes < 250 * MIB
        assert footprint.peak_bytes >= footprint.bytes
        assert harness.memory.counters["measured"] == 1
    keys = [info.key for info in registry.store.list("footprints/")]
    assert len(keys) == 1
    assert keys[0].startswith("footprints/m/1/onnxruntime-cpu-b8-i1/")
    async with memory_harness(registry, embedded, tmp_path, 1024 * MIB) as harness:
        await harness.until("it is adopted", lambda: harness.memory.models and harness.view("m").state == "loaded")
        await harness.until(
            "the ledger is rebuilt", lambda: sum(one.resident_bytes for one in harness.memory.devices) > 100 * MIB
        )
        assert harness.view("m").footprint[0].source == "measured"


async def test_pinned_model_stays_and_oversized_model_is_refused_with_sizes(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        assert (await harness.deploy("p", 1.0, mode="pinned")).phase is Phase.READY
        assert (await harness.deploy("q", 2.0, mode="pinned")).phase is Phase.READY
        await harness.deploy("d", 3.0, **small("d"))
        await asyncio.sleep(0.6)
        status = await harness.load("d")
        assert status.phase is Phase.FAILED
        assert "out of memory" in status.message
        assert "needs" in status.message
        assert "p " in status.message
        assert "q " in status.message
        assert harness.loaded() == ["p", "q"]
        assert harness.memory.evictions == ()
        assert harness.view("d").state == "failed"
        plan = await harness.reconciler.plan_load("d")
        assert plan.servers[0].decision == "refuse"
        assert not plan.possible
        assert {holder.why for holder in plan.servers[0].holders if holder.model} == {"pinned"}
        harness.want("q", 1, mode="on-demand", keep_alive_seconds=0)
        assert (await harness.load("d")).phase is Phase.READY, "the obstacle is gone"


async def test_hold_prevents_eviction_until_it_ends(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        for number, model in enumerate("abc", 1):
            await harness.deploy(model, float(number), **small(model, keep_alive_seconds=None))
        async with harness.held("a"):
            async with harness.held("b"):
                await harness.until("both are loaded", lambda: harness.loaded() == ["a", "b"])
                waiting = asyncio.create_task(harness.load("c"))
                await harness.until("it waits", lambda: harness.view("c").state == "queued")
                await harness.until("the reason is stated", lambda: "held by a client" in harness.view("c").why)
                await asyncio.sleep(1.0)
                assert not waiting.done()
                assert await harness.infer("a") == 1.0
            assert (await waiting).phase is Phase.READY
            assert harness.loaded() == ["a", "c"], "the held model stays loaded"


async def test_holds_are_kept_in_the_store(registry: Registry, embedded: EmbeddedTriton, tmp_path: Path) -> None:
    hold = registry.holds.acquire("m", seconds=60, holder="client")
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        await harness.deploy("m", 1.0, **small("m"))
        await harness.until("the hold loads it", lambda: harness.loaded() == ["m"])
        assert harness.view("m").held_until == hold.expires_at
        renewed = registry.holds.renew("m", hold.id, seconds=120)
        await harness.until("the renewal is seen", lambda: harness.view("m").held_until == renewed.expires_at)


async def test_resident_models_fill_free_memory_without_evictions(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        statuses = [await harness.deploy(model, 1.0) for model in "abc"]
        assert [status.phase for status in statuses] == [Phase.READY, Phase.READY, Phase.UNLOADED]
        assert "no room" in statuses[2].message
        await asyncio.sleep(1.0)
        assert harness.loaded() == ["a", "b"]
        assert (await harness.load("c")).phase is Phase.READY, "it was requested"
        assert len(harness.loaded()) == 2
        assert len(harness.memory.evictions) == 1
        big = await harness.deploy("big", 1.0, resident_mib=400)
        assert big.phase is Phase.FAILED
        assert "out of memory" in big.message


async def test_higher_priority_is_loaded_first(registry: Registry, embedded: EmbeddedTriton, tmp_path: Path) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO, minimum_residence_seconds=60) as harness:
        for model, priority in (("a", 0), ("b", 5), ("c", 10)):
            await harness.deploy(model, 1.0, **small(model, keep_alive_seconds=None, priority=priority))
        await harness.load("b")
        await harness.load("a")
        assert (await harness.load("c", 20)).phase is Phase.READY, "it does not wait for the residence time of others"
        assert harness.loaded() == ["b", "c"]
        assert not (await harness.load("a", 1.0)).phase.settled, "the lowest priority waits"


async def test_new_version_replaces_old_one_when_both_do_not_fit(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, 150 * MIB) as harness:
        assert (await harness.deploy("m", 1.0)).phase is Phase.READY
        plan = await harness.reconciler.plan_load("m")
        assert plan.servers[0].decision == "nothing"
        status = await harness.deploy("m", 2.0)
        assert status.phase is Phase.READY
        assert await harness.infer("m") == 2.0
        assert harness.memory.counters["gaps"] == 1


@pytest.mark.parametrize(("budget", "waited"), [(340 * MIB, False), (TWO, True)])
async def test_load_waits_for_candidate_memory_only_without_room_for_three(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path, budget: int, waited: bool
) -> None:
    async with memory_harness(registry, embedded, tmp_path, budget) as harness:
        assert (await harness.deploy("m", 1.0)).phase is Phase.READY
        status = await harness.deploy("m", 2.0, bake_seconds=60)
        assert status.phase is Phase.READY
        assert status.servers[0].loaded_versions == (1, 2)
        assert ("unload" in status.servers[0].seconds) is waited
        assert await harness.infer("m") == 2.0
        await harness.until("the candidate is gone", lambda: not embedded.processes_of("m~candidate"))
        await harness.until("its memory is released", lambda: harness.memory.devices[0].reserved_bytes == 0)
        assert harness.memory.counters["gaps"] == 0


async def test_update_strategy_is_applied(registry: Registry, embedded: EmbeddedTriton, tmp_path: Path) -> None:
    async with memory_harness(registry, embedded, tmp_path, 600 * MIB) as harness:
        assert (await harness.deploy("m", 1.0)).phase is Phase.READY
        await harness.deploy("m", 2.0, update_strategy="rolling")
        assert harness.memory.counters["gaps"] == 0
        version = publish_affine(registry, "m", tmp_path, scale=3.0)
        asked = DeploymentSettings(update_strategy=Switch.RECREATE)
        (plan,) = (await harness.reconciler.plan_load("m", version, asked)).servers
        assert (plan.beside, plan.why) == (False, "as requested")
        assert plan.gap_seconds > 0
        revision = harness.want("m", version, update_strategy="recreate")
        assert (await harness.reconciler.wait_settled("m", revision, 60)).phase is Phase.READY
        assert await harness.infer("m") == 3.0
        assert harness.memory.counters["gaps"] == 1


async def test_rolling_update_that_does_not_fit_keeps_the_old_version(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, 150 * MIB) as harness:
        assert (await harness.deploy("m", 1.0)).phase is Phase.READY
        version = publish_affine(registry, "m", tmp_path, scale=2.0)
        (plan,) = (
            await harness.reconciler.plan_load("m", version, DeploymentSettings(update_strategy=Switch.ROLLING))
        ).servers
        assert plan.decision == "refuse"
        assert "do not fit together" in plan.why
        revision = harness.want("m", version, update_strategy="rolling")
        status = await harness.reconciler.wait_settled("m", revision, 60)
        assert status.phase is Phase.DEGRADED
        assert "version 1 stays active: out of memory" in status.message
        assert await harness.infer("m") == 1.0
        assert harness.memory.counters["gaps"] == 0


async def test_out_of_memory_raises_footprint_and_retries_once(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO) as harness:
        for number, model in enumerate("abc", 1):
            await harness.deploy(model, float(number), **small(model, keep_alive_seconds=None))
        await harness.load("a")
        await asyncio.sleep(0.6)
        before = harness.view("b").footprint[0].bytes
        harness.client.refusals["b"] = 1
        assert (await harness.load("b")).phase is Phase.READY
        assert harness.events("OutOfMemory") != []
        assert harness.loaded() == ["b"], "the larger footprint required an eviction"
        await asyncio.sleep(0.6)
        harness.client.refusals["c"] = 9
        status = await harness.load("c")
        assert status.phase is Phase.FAILED
        assert "allocate memory" in status.message
        assert harness.client.refusals["c"] == 7, "the load and one retry"
        assert harness.view("c").footprint[0].bytes > before
        assert harness.loaded() in (["b"], []), "only the evicted models were unloaded"


async def test_after_triton_crash_pinned_models_load_first_then_by_use(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, 300 * MIB, max_concurrent_loads=1) as harness:
        await harness.deploy("p", 1.0, mode="pinned")
        for number, model in enumerate("abc", 2):
            await harness.deploy(model, float(number), **small(model, keep_alive_seconds=None))
        await harness.load("a")
        await harness.load("b")
        await asyncio.sleep(0.6)
        assert await harness.infer("a") == 2.0
        await harness.until(
            "the use is seen", lambda: harness.view("a").rate_per_second > harness.view("b").rate_per_second
        )
        seen = len(harness.events("ProofPassed"))
        assert embedded.pid is not None
        os.kill(embedded.pid, signal.SIGKILL)
        await harness.until("the crash is noticed", lambda: harness.loaded() == [])
        await harness.until("all models are loaded", lambda: harness.loaded() == ["a", "b", "p"], 60)
        await harness.until("and proved", lambda: len(harness.events("ProofPassed")) == seen + 3)
        order = [line.partition(":")[0] for line in harness.events("ProofPassed")][seen:]
        assert order == ["p", "a", "b"]
        assert harness.view("c").state == "unloaded", "it was not requested"


async def test_unaccounted_memory_reduces_the_budget(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, TWO, leak_warning_threshold_bytes=30 * MIB) as harness:
        await harness.deploy("a", 1.0, keep_alive_seconds=None, mode="on-demand")
        await harness.deploy("b", 2.0, keep_alive_seconds=None, mode="on-demand")
        await harness.load("a")
        config = await harness.client.model_config("a")
        repository = ModelRepository(embedded.repository)
        source = repository.root / "a" / "1" / "model.onnx"
        repository.stage("foreign", 1, {"model.onnx": source}, None)
        policy = {"specific": {"versions": [1]}}
        await harness.client.load("foreign", {**config, "name": "foreign", "version_policy": policy})
        await harness.until("it is seen", lambda: harness.memory.devices[0].unaccounted_bytes > 50 * MIB)
        await harness.until("the event was recorded", lambda: harness.events("UnaccountedMemory") != [])
        await asyncio.sleep(0.6)
        assert (await harness.load("b")).phase is Phase.READY
        assert harness.loaded() == ["b"], "memory of unmanaged models is not reserved for others"
        await harness.client.unload("foreign")
        await harness.until("it is gone", lambda: harness.memory.devices[0].unaccounted_bytes < 30 * MIB)
        assert (await harness.load("a")).phase is Phase.READY
        assert harness.loaded() == ["a", "b"]
