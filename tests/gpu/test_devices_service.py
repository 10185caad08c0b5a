"""Devices that do not answer delay no request for long."""

import asyncio
import threading
from pathlib import Path

import pytest

from controlplane.api.metrics.devices import DeviceMetrics
from controlplane.errors import DeviceError, NotFoundError
from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.servers.server import ManagedServer
from controlplane.services.devices import Devices
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository

GPU = DeviceReading("gpu:0", DeviceKind.GPU, 1000, 100, processes={9: 90, 7: 70}, throttle_reasons=("sw_power_cap",))


class Slow:
    """A source whose answer waits for the test."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.readings = 0
        self.error: Exception | None = None
        self.devices = (GPU,)

    def read(self) -> tuple[DeviceReading, ...]:
        self.readings += 1
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        return self.devices

    def close(self) -> None:
        pass


def managed(name: str, source: Slow | None, folder: Path) -> ManagedServer:
    client = TritonClient(name, "127.0.0.1:1")
    return ManagedServer(
        name, client, ModelRepository(folder), devices=source, budgets=BudgetRules(share=0.5, host_share=0.5)
    )


async def test_reading_contains_devices_and_budgets(tmp_path: Path) -> None:
    devices = Devices([managed("a", Slow(), tmp_path), managed("bare", None, tmp_path)])
    a, bare = await devices.all()
    (gpu,) = a.devices
    assert (a.server, a.error, gpu.total_bytes, gpu.free_bytes, gpu.budget_bytes) == ("a", "", 1000, 900, 500)
    assert gpu.processes is not None
    assert [(one.pid, one.bytes) for one in gpu.processes] == [(7, 70), (9, 90)]
    assert (bare.server, bare.devices, bare.error) == ("bare", (), "")
    assert a.observed_at is not None
    assert devices.latest() == (a, bare)
    with pytest.raises(NotFoundError, match="the servers are: a, bare"):
        await devices.of("b")


async def test_concurrent_queries_share_one_reading(tmp_path: Path) -> None:
    source = Slow()
    source.go_on.clear()
    devices = Devices([managed("a", source, tmp_path)])
    questions = [asyncio.create_task(devices.of("a")) for _ in range(20)]
    await asyncio.sleep(0)
    source.go_on.set()
    answers = await asyncio.gather(*questions)
    assert source.readings == 1
    assert {answer.observed_at for answer in answers} == {answers[0].observed_at}
    await devices.of("a")
    assert source.readings == 1, "a fresh reading serves the next one too"


async def test_unresponsive_server_shows_last_reading_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.services.devices._MAX_AGE_SECONDS", -1)
    hanging, other = Slow(), Slow()
    devices = Devices([managed("a", hanging, tmp_path), managed("b", other, tmp_path)], wait_seconds=0.05)
    first, _ = await devices.all()
    hanging.go_on.clear()
    for _ in range(3):
        stale, fresh = await devices.all()
    assert "have not responded" in stale.error
    assert (stale.devices, stale.observed_at) == (first.devices, first.observed_at)
    assert fresh.error == ""
    assert hanging.readings == 2, "waiting queries share one thread"
    hanging.go_on.set()
    while (await devices.of("a")).error:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "told"), [(DeviceError("no NVML today"), "no NVML today"), (KeyError("x"), "unexpected KeyError")]
)
async def test_failed_source_keeps_last_devices_and_shows_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    monkeypatch.setattr("controlplane.services.devices._MAX_AGE_SECONDS", -1)
    source = Slow()
    devices = Devices([managed("a", source, tmp_path)])
    before = await devices.of("a")
    source.error = error
    after = await devices.of("a")
    assert told in after.error
    assert after.devices == before.devices
    source.error = None
    assert (await devices.of("a")).error == ""


async def test_metrics_omit_values_of_failed_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.services.devices._MAX_AGE_SECONDS", -1)
    source = Slow()
    devices = Devices([managed("a", source, tmp_path)])

    def told() -> dict[str, float]:
        return {sample.name: sample.value for one in DeviceMetrics(devices).collect() for sample in one.samples}

    assert told() == {}
    await devices.all()
    assert told() == {
        "tritonctl_device_up": 1,
        "tritonctl_device_throttled": 1,
        "tritonctl_device_total_bytes": 1000,
        "tritonctl_device_used_bytes": 100,
        "tritonctl_device_budget_bytes": 500,
    }
    source.error = DeviceError("gone")
    await devices.all()
    assert told() == {"tritonctl_device_up": 0}
    source.error, source.devices = None, (DeviceReading("gpu:0", DeviceKind.GPU, 1000, None, error="lost", lost=True),)
    await devices.all()
    assert told() == {"tritonctl_device_up": 0}
