"""A server as its memory scheduler sees it: the test supplies readings and action results; nothing runs."""

from datetime import UTC, datetime
from pathlib import Path

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.lifecycle.actions import Action, Load
from controlplane.lifecycle.desired import DesiredDeployment, DesiredStateResolver
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus, Target
from controlplane.memory.footprint_recorder import FootprintSample
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.servers.readings import ServerReading
from controlplane.settings import MemorySettings
from tests.reconciler.conftest import open_registry
from tests.support.models import publish_affine

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MIB = 1 << 20
HOST_READING = DeviceReading(HOST, DeviceKind.HOST, 8192 * MIB, 1024 * MIB)


def gpu(number: int, used: int = 500 * MIB) -> DeviceReading:
    return DeviceReading(f"gpu:{number}", DeviceKind.GPU, 16384 * MIB, used, device_id=number)


class Served:
    """A server as its memory scheduler sees it, with one model of two versions; the second is desired."""

    def __init__(self, work: Path, devices: tuple[DeviceReading, ...], rules: BudgetRules) -> None:
        registry = open_registry(work)
        before = None
        for scale in (1.0, 2.0):
            version = publish_affine(registry, "m", work, scale=scale)
            spec = DeploymentSpec(
                model="m", reference=f"m:{version}", version=version, settings=DeploymentSettings(mode=Mode.PINNED)
            )
            before = registry.deployments.put(spec, after=before, actor="test", reason="")
        desired_deployment = DesiredStateResolver(registry).read("m")
        assert desired_deployment is not None
        self.desired_deployment: DesiredDeployment = desired_deployment
        self.scheduler = MemoryScheduler("s", rules, MemorySettings(), registry.footprints, told=True)
        self.unit = Replica("s", "m", ReplicaObservation())
        self.reading = ServerReading(devices)
        self.step = 1
        self.look(self.reading)

    def look(self, reading: ServerReading) -> None:
        """Supply a reading that began just now."""
        self.reading, self.step = reading, self.step + 1
        self.scheduler.take(reading, [], self.step, NOW)

    def target(self, version: int) -> Target:
        return next(target for target in self.desired_deployment.targets if target.version == version)

    def do(
        self,
        action: Action,
        *,
        grown: int = 0,
        mark: ProofStatus | None = None,
        meanwhile: ServerReading | None = None,
        then: ServerReading | None = None,
    ) -> list[FootprintSample]:
        """Report the action to the memory scheduler and return the measurement; ``then`` is read right after it."""
        scheduler, unit = self.scheduler, self.unit
        if isinstance(action, Load):
            need = scheduler.queue.needs(self.desired_deployment, unit, action)
            assert need is not None
            scheduler.update_residency([(self.desired_deployment, unit)], NOW)
            scheduler.queue.ask("m", need, NOW)
            assert scheduler.queue.schedule({"m": unit}, NOW).go == ["m"]
        scheduler.began(unit, action, NOW)
        if meanwhile is not None:
            self.look(meanwhile)
        self.reading, self.step = then or self.reading, self.step + 2
        growth = {device.name: grown for device in self.reading.devices or ()}
        measured = scheduler.ended(
            self.desired_deployment, unit, Outcome(action, mark=mark), self.reading, growth, self.step, NOW
        )
        assert unit.facts is not None
        unit.facts = unit.facts.after(action) if mark is None else unit.facts
        return measured
