"""A forward deploy of a version with a passed proof on record loads it once, and proves it after the switch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.deployment import DeploymentSettings, InstanceKind
from controlplane.domain.names import candidate_name
from controlplane.domain.rollout.strategy import RolloutStrategy, StrategyKind
from controlplane.domain.states import Phase
from controlplane.lifecycle.actions import Load, Prove, Stage
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.planner import plan
from controlplane.lifecycle.state import DesiredReplica, Failure, ObservedReplica, ProofStatus, Target
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.proofs import ProofKey
from controlplane.registry.registry import Registry
from tests.reconciler.conftest import Harness, forget, nothing_half_staged, running, traffic
from tests.support.models import affine_samples
from tests.support.triton import RunningTriton

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Without device readings, only a configuration for the CPU says where a model runs.
CPU = DeploymentSettings(instance_kind=InstanceKind.CPU)


def count_loads(harness: Harness) -> list[str]:
    """Return a list that receives the name of everything that Triton is asked to load."""
    names: list[str] = []
    load = harness.server.client.load

    async def counted(name: str, config: Any) -> None:
        names.append(name)
        await load(name, config)

    harness.server.client.load = counted  # type: ignore[method-assign]
    return names


def desired_of(harness: Harness, version: int, **changes: Any) -> tuple[TrackedServer, DesiredDeployment]:
    """Commit a revision, and return it prepared as the reconciler would read it."""
    revision = harness.put(f"{harness.model}:{version}", **changes)
    return harness.reconciler._state.servers["test"], harness.reconciler._desired_state.of(revision)


def key_of(tracked: TrackedServer, desired: DesiredDeployment) -> ProofKey:
    key = tracked.proof_key(desired.model, desired.prepared[desired.wanted])
    assert key is not None
    return key


def record_by_hand(harness: Harness, version: int) -> ProofKey:
    """Put a passed proof of a version on record, whatever the version really answers."""
    prepared = harness.reconciler._desired_state.prepare(harness.model, version, CPU)
    key = harness.reconciler._state.servers["test"].proof_key(harness.model, prepared)
    assert key is not None
    harness.registry.proofs.put(key, model=harness.model, version=version, server="another")
    return key


def on_record(harness: Harness, key: ProofKey) -> bool:
    return harness.registry.store.head(key.object_key) is not None


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.mark.triton
async def test_a_version_proved_for_another_model_is_loaded_once(harness: Harness, triton: RunningTriton) -> None:
    other = Harness(harness.registry, harness.server, harness.reconciler, f"{harness.model}-staging", harness.work)
    assert (await other.deploy(other.publish(2.0), settings=CPU)).phase is Phase.READY
    await until(lambda: list(harness.registry.store.list("proofs/")))
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first, settings=CPU)
    loads = count_loads(harness)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(second)
        assert status.phase is Phase.READY, status
        assert loads == [harness.model], "loaded once, under its own name"
        assert status.servers[0].loaded_versions == (first, second)
        assert status.servers[0].bake_until is not None
        assert status.servers[0].proof is not None
        assert status.servers[0].proof.samples == 2
        # It is qualified as any other version, after the switch.
        await until(lambda: harness.registry.reports.history(harness.model, second, limit=1))
        status = await harness.rollback()
        assert "load" not in status.servers[0].seconds, "a rollback is a change of policy"
        await asyncio.sleep(0.1)
    assert seen.errors == []
    assert seen.order == [first, second, first]
    await other.deploy(1, deleted=True)
    await forget(triton, other.model)


@pytest.mark.triton
async def test_a_version_without_a_record_is_loaded_as_a_candidate_first(harness: Harness) -> None:
    await harness.deploy(harness.publish(1.0), settings=CPU)
    loads = count_loads(harness)
    second = harness.publish(2.0)
    await harness.deploy(second)
    assert loads[:2] == [candidate_name(harness.model), harness.model]
    key = key_of(*desired_of(harness, second))
    await until(lambda: on_record(harness, key))


@pytest.mark.triton
async def test_a_failed_proof_after_the_switch_falls_back_and_ends_the_record(harness: Harness) -> None:
    good = harness.publish(1.0)
    wrong = harness.publish(2.0, golden=affine_samples(scale=3.0))
    await harness.deploy(good, settings=CPU)
    key = record_by_hand(harness, wrong)
    loads = count_loads(harness)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(wrong)
        assert status.phase is Phase.DEGRADED, status
        status = await harness.until(lambda status: status.servers[0].loaded_versions == (good,))
        await harness.until(lambda status: harness.reconciler.routes().get(harness.model) is not None)
        assert loads == [harness.model, harness.model], "one load, and one change of policy back to the earlier version"
        await until(lambda: not on_record(harness, key))
        before = seen.order
        # Requested again, it is proved as a candidate and never becomes active.
        loads.clear()
        status = await harness.deploy(wrong, settings=CPU.model_copy(update={"bake_seconds": 200.0}))
        assert status.phase is Phase.DEGRADED
        assert loads == [candidate_name(harness.model)]
    assert seen.errors == []
    assert seen.order == before
    assert before in ([good, wrong, good], [good]), "the earlier version answers again"
    await nothing_half_staged(harness.server, harness.model)


@pytest.mark.triton
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
async def test_stopped_between_load_and_proof_the_next_process_proves_it(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path, right: bool
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        first = harness.publish(1.0)
        second = harness.publish(2.0, golden="right" if right else affine_samples(scale=3.0))
        await harness.deploy(first, settings=CPU)
        record_by_hand(harness, second)
        loads = count_loads(harness)
        async with never_proved(harness, second) as reached:
            harness.put(f"{model}:{second}")
            harness.reconciler.wake(model)
            await asyncio.wait_for(reached.wait(), 60)
            status = harness.reconciler.status(model)
            assert status is not None
            assert status.phase is Phase.PROVING, "not Ready without a passed proof"
            route = harness.reconciler.routes()[model]
            assert route.version == second, "requests do not wait for the proof of what is on record"
        assert loads == [model]
    async with running(triton, registry, model, tmp_path) as harness:
        expected = Phase.READY if right else Phase.DEGRADED
        status = await harness.until(lambda status: status.phase is expected, 60)
        await harness.until(lambda _: harness.reconciler.routes().get(model) is not None)
        assert await harness.answer() == ((2.0, second) if right else (1.0, first))
        await nothing_half_staged(harness.server, model) if not right else None
    await forget(triton, model)


@contextlib.asynccontextmanager
async def never_proved(harness: Harness, version: int) -> AsyncIterator[asyncio.Event]:
    """Let the proof of a version begin and never end; stop the reconciler afterwards, as a kill would."""
    executor, reached = harness.reconciler._executor, asyncio.Event()
    run = executor.run

    async def held(server: Any, model: str, action: Any, *rest: Any) -> Any:
        if isinstance(action, Prove) and action.target.version == version:
            reached.set()
            await asyncio.Event().wait()
        return await run(server, model, action, *rest)

    executor.run = held  # type: ignore[method-assign, assignment]
    yield reached
    await harness.reconciler.stop()


@pytest.mark.triton
async def test_a_record_counts_only_for_the_same_key_and_an_immediate_update(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first, settings=CPU)
    await harness.reconciler.stop()
    tracked, desired = desired_of(harness, second)
    key = key_of(tracked, desired)
    for part in ("content", "config_digest", "backend", "device"):
        harness.registry.proofs.put(
            replace(key, **{part: "other"}), model=harness.model, version=second, server="another"
        )
        assert not tracked.desired(desired).proof_on_record, f"another {part}"
    harness.registry.proofs.put(key, model=harness.model, version=second, server="another")
    assert tracked.desired(desired).proof_on_record
    for changes in (
        {"max_latency_ratio": 2.0},
        {"max_memory_ratio": 2.0},
        {"rollout": RolloutStrategy(kind=StrategyKind.SHADOW)},
        {"max_batch_size": 2},
    ):
        tracked, desired = desired_of(harness, second, settings=CPU.model_copy(update=changes))
        if key_of(tracked, desired) != key:
            harness.registry.proofs.put(key_of(tracked, desired), model=harness.model, version=second, server="another")
        assert not tracked.desired(desired).proof_on_record, changes
    harness.registry.proofs._known.clear()
    tracked, desired = desired_of(harness, second, settings=CPU)
    assert tracked.desired(desired).proof_on_record, "the store is read again for each forward deploy"
    harness.registry.proofs.forget(key)
    harness.registry.proofs.refresh(key.content)
    assert not tracked.desired(desired).proof_on_record, "a proof failed, whether or not the record could be deleted"
    harness.registry.proofs.put(key, model=harness.model, version=second, server="test")
    assert tracked.desired(desired).proof_on_record
    harness.registry.proofs.remove(key)
    assert not tracked.desired(desired).proof_on_record


# The planner alone

GOAL, BASE = Target(2, "a"), Target(1, "a")
DESIRED = DesiredReplica(
    model="m", revision=2, revised_at=NOW, loaded=True, targets=(GOAL, BASE), history=(1,), proof_on_record=True
)
OBSERVED = ObservedReplica(
    loaded=frozenset({1}), digest="a", staged=frozenset({1, 2}), marks={1: ProofStatus.PASSED}
)  # fmt: skip


def test_a_proof_on_record_leads_to_one_load_beside_the_active_version() -> None:
    action = plan(DESIRED, replace(OBSERVED, staged=frozenset({1})), NOW)
    assert isinstance(action, Stage)
    assert not action.candidate
    action = plan(DESIRED, OBSERVED, NOW)
    assert isinstance(action, Load)
    assert (action.target, action.versions, action.candidate) == (GOAL, (1, 2), False)
    loaded = replace(OBSERVED, loaded=frozenset({1, 2}))
    action = plan(DESIRED, loaded, NOW)
    assert isinstance(action, Prove)
    assert action.target == GOAL
    failed = replace(
        loaded,
        marks={1: ProofStatus.PASSED, 2: ProofStatus.MISMATCH},
        failures={GOAL: Failure(1, "wrong", None)},
    )
    action = plan(DESIRED, failed, NOW)
    assert isinstance(action, Load)
    assert (action.target, action.versions) == (BASE, (1,))


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        pytest.param({"proof_on_record": False}, {}, id="no record"),
        pytest.param({"targets": (GOAL,)}, {}, id="nothing to fall back to"),
        pytest.param({"targets": (Target(2, "b"), BASE)}, {}, id="another configuration"),
        pytest.param({"relocation_reason": "moved"}, {"marks": {1: ProofStatus.UNRESPONSIVE}}, id="moved"),
        pytest.param({}, {"marks": {}}, id="active version not proved"),
        pytest.param({}, {"failures": {GOAL: Failure(1, "failed", NOW)}}, id="failed before"),
        pytest.param({}, {"failures": {BASE: Failure(1, "failed", None)}}, id="fallback blocked"),
    ],
)
def test_anything_less_than_a_record_and_a_proved_fallback_needs_a_candidate(
    desired: dict[str, Any], observed: dict[str, Any]
) -> None:
    action = plan(replace(DESIRED, **desired), replace(OBSERVED, **observed), NOW)
    assert isinstance(action, Stage)
    assert action.candidate
