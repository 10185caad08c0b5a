"""Servers that hang, load forever or run out of disk: detected, reported, and restarted if supervised."""

import os
import signal
from pathlib import Path

import pytest

from controlplane.domain.conditions import Condition, ConditionStatus, ServerCondition
from controlplane.domain.states import Phase, ServerState
from controlplane.registry.registry import Registry
from controlplane.servers.health import (
    HealthSignals,
    Remediation,
    ServerHealth,
    StuckLoad,
    remediation,
    server_conditions,
)
from controlplane.servers.snapshot import ServerSnapshot, Space
from tests.reconciler.test_healing import FaultyHarness, faulty_harness

pytestmark = pytest.mark.slow

HUNG = 30.0


def signs(**changes: object) -> HealthSignals:
    return HealthSignals(**{"supervised": True, "state": ServerState.READY, "live": True, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, Remediation.NOTHING),
        ({"state": ServerState.UNREACHABLE, "silent_seconds": 29.0}, Remediation.NOTHING),
        ({"state": ServerState.UNREACHABLE, "silent_seconds": 30.0}, Remediation.KILL),
        ({"state": ServerState.UNREACHABLE, "silent_seconds": 99.0, "supervised": False}, Remediation.NOTHING),
        ({"stuck": (StuckLoad("m", 1, 29.0),)}, Remediation.NOTHING),
        ({"stuck": (StuckLoad("m", 1, 30.0),)}, Remediation.END_LOADS),
        ({"stuck": (StuckLoad("m", 1, 50.0, ended=20.0),)}, Remediation.NOTHING),
        ({"stuck": (StuckLoad("m", 1, 60.0, ended=30.0),)}, Remediation.KILL),
        ({"stuck": (StuckLoad("m", 1, 60.0),), "supervised": False}, Remediation.NOTHING),
    ],
)
def test_remediation_for_each_health_signal(changes: dict[str, object], wanted: Remediation) -> None:
    assert remediation(signs(**changes), HUNG) is wanted


def said(given: HealthSignals) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status.value, one.reason) for one in server_conditions(given, 0.05, HUNG)}


def test_server_conditions_for_each_health_signal() -> None:
    disk = Space(ServerCondition.DISK_PRESSURE, "/models", 4, 100)
    memory = Space(ServerCondition.SHARED_MEMORY_PRESSURE, "/dev/shm", 50, 100)
    assert said(signs(metrics=False, spaces=(disk, memory), stuck=(StuckLoad("m", 1, 31.0),))) == {
        "Live": ("True", "Live"),
        "Ready": ("True", "Ready"),
        "MetricsAvailable": ("False", "MetricsMissing"),
        "LoadsStuck": ("True", "LoadStuck"),
        "DiskPressure": ("True", "NearlyFull"),
        "SharedMemoryPressure": ("False", "Enough"),
    }
    assert said(signs(agent=""))["AgentAvailable"] == ("True", "AgentAnswers")
    assert said(signs(agent="gone"))["AgentAvailable"] == ("False", "AgentUnreachable")
    hung = said(signs(state=ServerState.UNREACHABLE, timed_out=True))
    assert hung["Ready"] == ("False", "Hung")
    assert hung["LoadsStuck"] == ("Unknown", "NotSeen")
    assert said(signs(state=ServerState.UNREACHABLE))["Ready"] == ("False", "Unreachable")


def test_missing_answers_count_only_while_the_process_exists() -> None:
    server_health, away = ServerHealth(), ServerSnapshot(ServerState.UNREACHABLE, "no answer")
    server_health.seen(away, process_there=True, loads={}, now=10.0)
    server_health.seen(away, process_there=True, loads={}, now=25.0)
    assert server_health.signs(away, supervised=True, now=25.0).silent_seconds == 15.0
    server_health.seen(away, process_there=False, loads={}, now=26.0)
    assert server_health.signs(away, supervised=True, now=26.0).silent_seconds is None


@pytest.mark.triton
async def test_stopped_server_is_killed_and_restarts_with_its_models(
    registry: Registry, model: str, tmp_path: Path
) -> None:
    async with faulty_harness(
        registry, model, tmp_path, unresponsive_after_seconds=1.0, disk_pressure_threshold=1.0
    ) as faulty:
        version = faulty.publish(1.5)
        await faulty.deploy(version)
        server = faulty.triton.server
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        await faulty.until(lambda _: condition(faulty, "Ready").status is ConditionStatus.FALSE, 60)
        await faulty.until(lambda _: server.generation == 2, 60)
        await faulty.until(lambda status: status.phase is Phase.READY, 60)
        assert await faulty.answer() == (1.5, version)
        (killed,) = [e for e in faulty.reconciler.events() if e.reason == "ServerKilled"]
        assert "stopped by a signal" in killed.message
        # Real values of a real disk with a threshold that every disk exceeds.
        assert condition(faulty, "DiskPressure").status is ConditionStatus.TRUE
        assert "are free on" in condition(faulty, "DiskPressure").message
        await faulty.until(lambda _: condition(faulty, "MetricsAvailable").status is ConditionStatus.TRUE)


@pytest.mark.triton
async def test_hanging_load_is_ended_without_effect_on_other_models(
    registry: Registry, model: str, tmp_path: Path
) -> None:
    async with faulty_harness(registry, model, tmp_path, unresponsive_after_seconds=4.0, load_seconds=4.0) as faulty:
        good = faulty.publish(1.0)
        await faulty.deploy(good)
        (answering,) = faulty.processes()
        hanging = faulty.publish(2.0)
        faulty.triton.on()
        faulty.put(f"{model}:{hanging}", settings=faulty.triton.settings("hang-load", switched=True))
        faulty.reconciler.wake(model)
        await faulty.until(lambda status: status.phase is Phase.DEGRADED, 60)
        await faulty.until(lambda _: any(e.reason == "LoadKilled" for e in faulty.reconciler.events()), 60)
        faulty.triton.off()
        await faulty.until(lambda status: status.phase is Phase.READY, 90)
        assert await faulty.answer() == (2.0, hanging)
        assert faulty.triton.server.generation == 1, "no other model was affected"
        assert answering not in faulty.processes() or len(faulty.processes()) == 2


def condition(faulty: FaultyHarness, kind: str) -> Condition:
    (server,) = faulty.reconciler.servers()
    (found,) = [one for one in server.conditions if one.type == kind]
    return found
