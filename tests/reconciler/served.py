"""A server as its steward hears of it: readings go in, what was done is told, and nothing is run."""

from datetime import UTC, datetime
from pathlib import Path

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.reconciler.actions import Action, Load
from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.measuring import Measurement
from controlplane.reconciler.steward import Steward
from controlplane.reconciler.types import Mark, Target
from controlplane.reconciler.units import Unit
from controlplane.reconciler.wishes import Wish, Wishes
from controlplane.settings import MemorySettings
from tests.reconciler.conftest import open_registry
from tests.support.models import publish_affine

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MIB = 1 << 20
HOST_READING = DeviceReading(HOST, DeviceKind.HOST, 8192 * MIB, 1024 * MIB)


def gpu(number: int, used: int = 500 * MIB) -> DeviceReading:
    return DeviceReading(f"gpu:{number}", DeviceKind.GPU, 16384 * MIB, used, device_id=number)


class Served:
    """A server as its steward hears of it, with one model of two versions of which the second is wanted."""

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
        self.look(self.reading)

    def look(self, reading: Reading) -> None:
        """A reading comes that began just now."""
        self.reading, self.step = reading, self.step + 1
        self.steward.take(reading, [], self.step, NOW)

    def target(self, version: int) -> Target:
        return next(target for target in self.wish.targets if target.version == version)

    def do(
        self,
        action: Action,
        *,
        grown: int = 0,
        mark: Mark | None = None,
        meanwhile: Reading | None = None,
        then: Reading | None = None,
    ) -> list[Measurement]:
        """Do it, as far as the steward hears of it, and return what was measured; ``then`` is read right after it."""
        steward, unit = self.steward, self.unit
        if isinstance(action, Load):
            need = steward.queue.needs(self.wish, unit, action)
            assert need is not None
            steward.judge([(self.wish, unit)], NOW)
            steward.queue.ask("m", need, NOW)
            assert steward.queue.arrange({"m": unit}, NOW).go == ["m"]
        steward.began(unit, action, NOW)
        if meanwhile is not None:
            self.look(meanwhile)
        self.reading, self.step = then or self.reading, self.step + 2
        growth = {device.name: grown for device in self.reading.devices or ()}
        measured = steward.ended(self.wish, unit, Outcome(action, mark=mark), self.reading, growth, self.step, NOW)
        assert unit.facts is not None
        unit.facts = unit.facts.after(action) if mark is None else unit.facts
        return measured
