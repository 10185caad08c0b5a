"""Condition transition times survive a restart; changes during the restart are transitions."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.domain.conditions import Condition, ConditionStatus
from controlplane.domain.states import Phase
from controlplane.reconciler.condition_history import PART, resumed
from controlplane.registry.condition_log import ConditionLog
from controlplane.registry.registry import Registry
from tests.reconciler.conftest import Room, forget, running
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


def since(room: Room, kind: str = "Ready") -> datetime | None:
    status = room.reconciler.status(room.model)
    assert status is not None
    (found,) = [one for one in status.conditions if one.type == kind]
    return found.last_transition_time if found.status is ConditionStatus.TRUE else None


@pytest.mark.triton
async def test_restart_is_no_transition_but_unload_meanwhile_is(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    def kept() -> bool:
        return model in registry.condition_log.all() and "Ready" in str(registry.condition_log.all()[model][PART])

    async with running(triton, registry, model, tmp_path) as room:
        await room.deploy(room.publish(1.0))
        await room.until(lambda status: status.phase is Phase.READY and kept())
        first = since(room)
        assert first is not None
    async with running(triton, registry, model, tmp_path) as room:
        await room.until(lambda status: status.phase is Phase.READY and since(room) == first)
        assert room.events("VersionActivated") == [], "nothing was loaded again"
    await room.server.client.close()
    client = triton.client()
    await client.unload(model)
    await client.close()
    async with running(triton, registry, model, tmp_path) as room:
        await room.until(lambda status: status.phase is Phase.READY and room.events("VersionActivated") != [])
        later = since(room)
        assert later is not None
        assert later > first
        await room.until(lambda _: str(later.isoformat()) in str(registry.condition_log.all()[model][PART]))
        assert since(room) == later
    await forget(triton, model)


@pytest.mark.triton
async def test_conditions_of_removed_deployments_are_deleted(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    def known() -> dict[str, object]:
        return dict(ConditionLog(registry.store).all().get(model, {}))

    async with running(triton, registry, model, tmp_path) as room:
        version = room.publish(1.0)
        await room.deploy(version)
        await room.until(lambda _: "Ready" in str(known()))
        first = since(room)
        await room.deploy(version, deleted=True)
        await room.until(lambda status: status.phase is Phase.UNLOADED and known() == {})
    # A leader was killed before it deleted the conditions.
    server = room.server.name
    stale = {server: {"Ready": ["True", THEN.isoformat()]}}
    assert ConditionLog(registry.store).put(model, PART, stale, actor="test", reason="test")
    async with running(triton, registry, model, tmp_path) as room:
        await room.until(lambda _: known() == {})
        await room.deploy(version)
        await room.until(lambda status: status.phase is Phase.READY and "Ready" in str(known()))
        again = since(room)
        assert first is not None
        assert again is not None
        assert again > first
    await forget(triton, model)
