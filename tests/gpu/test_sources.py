"""Several sources as one, which counts for which server, and budgets."""

import logging
import threading
from pathlib import Path

import psutil
import pytest

from controlplane.errors import DeviceError
from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.gpu.combined import CombinedSource
from controlplane.gpu.factory import embedded_devices, server_devices
from controlplane.settings import MemorySettings, TritonServerSettings, TritonSettings
from controlplane.triton.metrics_scraper import MetricsScraper
from tests.support.nvml import GIB
from tests.support.triton import running_triton

HOST = DeviceReading("host", DeviceKind.HOST, 100 * GIB, 10 * GIB)
GPU = DeviceReading("gpu:0", DeviceKind.GPU, 80 * GIB, GIB)


class Source:
    """Says what a test wants."""

    def __init__(self, *readings: DeviceReading, error: str = "") -> None:
        self.readings = readings
        self.error = error
        self.closed = 0

    def read(self) -> tuple[DeviceReading, ...]:
        if self.error:
            raise DeviceError(self.error)
        return self.readings

    def close(self) -> None:
        self.closed += 1


def test_failed_source_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broken = Source(GPU, error="driver trouble")
    source = CombinedSource([Source(HOST), broken])
    assert source.read() == source.read() == (HOST,)
    assert [record.message for record in caplog.records] == ["devices cannot be read: driver trouble"]
    broken.error = "other trouble"
    source.read()
    broken.error = ""
    assert source.read() == (HOST, GPU)
    assert [record.message for record in caplog.records][1:] == [
        "devices cannot be read: other trouble",
        "devices can be read again: gpu:0",
    ]


def test_failure_of_all_sources_is_an_error() -> None:
    with pytest.raises(DeviceError, match="one; two"):
        CombinedSource([Source(error="one"), Source(error="two")]).read()
    assert CombinedSource([]).read() == ()


def test_first_source_with_a_device_is_used() -> None:
    other = DeviceReading("host", DeviceKind.HOST, 1, 1)
    sources = [Source(HOST), Source(other, GPU)]
    combined = CombinedSource(sources)
    assert combined.read() == (HOST, GPU)
    combined.close()
    assert [source.closed for source in sources] == [1, 1]


def test_server_gets_sources_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    # No GPU on the machine of these tests, so what differs is the host and its processes.
    (host,) = embedded_devices(TritonSettings(), lambda: [threading.get_native_id()]).read()
    assert host.name == "host"
    assert host.processes
    named = embedded_devices(TritonSettings(gpus=("GPU-1",))).read()
    assert [reading.name for reading in named] == ["host", "GPU-1"]

    def elsewhere(**more: object) -> TritonServerSettings:
        return TritonServerSettings.model_validate({"name": "a", "grpc_url": "a:1", "repository": "/r", **more})

    page = MetricsScraper("http://127.0.0.1:1")
    (host,) = server_devices(elsewhere(local=True), page, 1).read()
    assert host.processes is None
    assert server_devices(elsewhere(), None, 1).read() == ()
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:1"):
        server_devices(elsewhere(), page, 1).read()
    page.close()


@pytest.mark.triton
def test_embedded_server_numbers_gpus_as_we_do_and_sees_only_its_own(tmp_path: Path) -> None:
    settings = TritonSettings(gpus=("GPU-2", "GPU-0"))
    with running_triton(tmp_path, settings) as triton:
        assert triton.server.pid is not None
        environment = psutil.Process(triton.server.pid).environ()
        assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-0"
        read = embedded_devices(settings, triton.server.processes).read()
    assert [(reading.name, reading.device_id) for reading in read] == [("host", None), ("GPU-2", 0), ("GPU-0", 1)]


def test_budgets_are_bytes_or_shares() -> None:
    rules = BudgetRules({"gpu:0": 20 * GIB}, share=0.5, host_share=0.25, headroom_bytes=GIB)
    assert rules.budget_bytes(GPU) == 20 * GIB
    assert rules.budget_bytes(DeviceReading("gpu:1", DeviceKind.GPU, 80 * GIB, 0)) == 39 * GIB
    assert rules.budget_bytes(HOST) == 24 * GIB
    assert rules.budget_bytes(DeviceReading("gpu:0", DeviceKind.GPU, 10 * GIB, 0)) == 10 * GIB, "no more than there is"
    assert rules.budget_bytes(DeviceReading("gpu:2", DeviceKind.GPU, GIB, 0)) == 0, "the head-room takes it all"


def test_unusable_device_has_no_budget() -> None:
    rules = BudgetRules({"gpu:0": GIB})
    lost = DeviceReading("gpu:0", DeviceKind.GPU, 80 * GIB, None, error="lost", lost=True)
    cut = DeviceReading("gpu:0", DeviceKind.GPU, 80 * GIB, 0, allocatable=False)
    silent = DeviceReading("gpu:0", DeviceKind.GPU, 80 * GIB, None, error="NVML reports 'Timeout'")
    assert [rules.budget_bytes(one) for one in (lost, cut, silent)] == [0, 0, GIB]


def test_budget_of_server_overrides_global_budget() -> None:
    memory = MemorySettings(budget_bytes={"host": 7, "gpu:0": 8}, gpu_budget_fraction=0.5, headroom_bytes=3)
    plain = TritonServerSettings.model_validate({"name": "a", "grpc_url": "a:1", "repository": "/r"})
    own = plain.model_copy(update={"budget_bytes": {"gpu:0": 9}, "gpu_budget_fraction": 0.25, "headroom_bytes": 0})
    assert BudgetRules.from_settings(memory) == BudgetRules.from_settings(memory, plain)
    assert BudgetRules.from_settings(memory) == BudgetRules({"host": 7, "gpu:0": 8}, 0.5, 0.8, 3)
    assert BudgetRules.from_settings(memory, own) == BudgetRules({"host": 7, "gpu:0": 9}, 0.25, 0.25, 0)
