"""Condition transition times survive a restart; changes during the restart are transitions."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.domain.conditions import Condition, ConditionStatus
from controlplane.domain.states import Phase
from controlplane.reconciler.condition_history import PART, resumed
from controlplane.registry.condition_log import ConditionLog
from controlplane.registry.registry import Registry
from tests.reconciler.conftest import Harness, forget, running
from tests.support.triton import RunningTriton

THEN, NOW = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2))


def test_condition_keeps_transition_time_while_status_is_equal() -> None:
    def said(kind: str, status: ConditionStatus) -> Condition:
        return Condition(type=kind, status=status, reason="x", last_transition_time=NOW)

    now = [
        said("Ready", ConditionStatus.TRUE),
        said("Healthy", ConditionStatus.FALSE),
        said("New", ConditionStatus.TRUE),
    ]
    before = {"Ready": ("True", THEN), "Healthy": ("True", THEN)}
    assert [one.last_transition_time for one in resumed(now, before)] == [THEN, NOW, NOW]


def since(harness: Harness, kind: str = "Ready") -> datetime | None:
    status = harness.reconciler.status(harness.model)
    assert status is not None
    (found,) = [one for one in status.conditions if one.type == kind]
    return found.last_transition_time if found.status is ConditionStatus.TRUE else None


@pytest.mark.triton
async def test_restart_is_no_transition_but_unload_meanwhile_is(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    def kept() -> bool:
        return model in registry.condition_log.all() and "Ready" in str(registry.condition_log.all()[model][PART])

    async with running(triton, registry, model, tmp_path) as harness:
        await harness.deploy(harness.publish(1.0))
        await harness.until(lambda status: status.phase is Phase.READY and kept())
        first = since(harness)
        assert first is not None
    async with running(triton, registry, model, tmp_path) as harness:
        await harness.until(lambda status: status.phase is Phase.READY and since(harness) == first)
        assert harness.events("VersionActivated") == [], "nothing was loaded again"
    await harness.server.client.close()
    client = triton.client()
    await client.unload(model)
    await client.close()
    async with running(triton, registry, model, tmp_path) as harness:
        await harness.until(lambda status: status.phase is Phase.READY and harness.events("VersionActivated") != [])
        later = since(harness)
        assert later is not None
        assert later > first
        await harness.until(lambda _: str(later.isoformat()) in str(registry.condition_log.all()[model][PART]))
        assert since(harness) == later
    await forget(triton, model)


@pytest.mark.triton
async def test_conditions_of_removed_deployments_are_deleted(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    def known() -> dict[str, object]:
        return dict(ConditionLog(registry.store).all().get(model, {}))

    async with running(triton, registry, model, tmp_path) as harness:
        version = harness.publish(1.0)
        await harness.deploy(version)
        await harness.until(lambda _: "Ready" in str(known()))
        first = since(harness)
        await harness.deploy(version, deleted=True)
        await harness.until(lambda status: status.phase is Phase.UNLOADED and known() == {})
    # A leader was killed before it deleted the conditions.
    server = harness.server.name
    stale = {server: {"Ready": ["True", THEN.isoformat()]}}
    assert ConditionLog(registry.store).put(model, PART, stale, actor="test", reason="test")
    async with running(triton, registry, model, tmp_path) as harness:
        await harness.until(lambda _: known() == {})
        await harness.deploy(version)
        await harness.until(lambda status: status.phase is Phase.READY and "Ready" in str(known()))
        again = since(harness)
        assert first is not None
        assert again is not None
        assert again > first
    await forget(triton, model)
