"""The devices of a server elsewhere, from its metrics: pages in the form of a GPU machine's, and a real server's."""

import time
from pathlib import Path

import psutil
import pytest

from controlplane.errors import DeviceError
from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.gpu.triton_metrics import TritonMetricsSource, devices, parse
from controlplane.triton.metrics_scraper import MetricsScraper
from tests.support.triton import running_triton

MIB = 1 << 20
A, B = "GPU-1ccddeda-8caf-7d8e-cfe2-a63cddeaafd2", "GPU-a763c375-aefc-7f0c-76da-1c5554011402"

# As Triton 2.51 writes it on a machine with two GPUs; models' metrics shortened.
PAGE = f"""# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="resnet_50",version="1"}} 2
# HELP nv_inference_request_summary_us Summary of inference request duration in microseconds (includes cached requests)
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us_count{{model="resnet_50",version="1"}} 0
nv_inference_request_summary_us{{model="resnet_50",version="1",quantile="0.5"}} Nan
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{{gpu_uuid="{B}"}} 0.37
nv_gpu_utilization{{gpu_uuid="{A}"}} 0
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{{gpu_uuid="{B}"}} 85899345920
nv_gpu_memory_total_bytes{{gpu_uuid="{A}"}} 25769803776
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{{gpu_uuid="{B}"}} 1.073741824e+09
nv_gpu_memory_used_bytes{{gpu_uuid="{A}"}} 534773760
# HELP nv_gpu_power_usage GPU power usage in watts
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{{gpu_uuid="{B}"}} 76.5
nv_gpu_power_usage{{gpu_uuid="{A}"}} 0
# HELP nv_gpu_power_limit GPU power management limit in watts
# TYPE nv_gpu_power_limit gauge
nv_gpu_power_limit{{gpu_uuid="{B}"}} 400
nv_gpu_power_limit{{gpu_uuid="{A}"}} 0
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{{gpu_uuid="{B}"}} 129861.324
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.0625
# HELP nv_cpu_memory_total_bytes CPU total memory (RAM), in bytes
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes 33532850176
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 4123484160
"""


def of(page: str, *uuids: str) -> dict[str, DeviceReading]:
    return {reading.name: reading for reading in devices(parse(page), uuids)}


def test_all_values_of_a_page_are_read() -> None:
    read = of(PAGE, B, A)
    assert list(read) == ["host", "gpu:0", "gpu:1"]
    host, first, second = read.values()
    assert (host.kind, host.total_bytes, host.used_bytes, host.utilisation) == (
        DeviceKind.HOST,
        33_532_850_176,
        4_123_484_160,
        0.0625,
    )
    assert (first.uuid, first.kind, first.device_id, first.total_bytes, first.used_bytes) == (
        B,
        DeviceKind.GPU,
        0,
        85_899_345_920,
        1024 * MIB,
    )
    assert (first.utilisation, first.power_watts, first.power_limit_watts) == (0.37, 76.5, 400)
    assert (second.uuid, second.device_id, second.utilisation, second.power_watts) == (A, 1, 0.0, None)
    unread = (first.processes, first.temperature_celsius, first.ecc_corrected, first.throttle_reasons)
    assert unread == (None, None, None, None)


def test_order_of_several_gpus_is_unknown_without_settings() -> None:
    read = of(PAGE)
    assert {name: (one.uuid, one.device_id) for name, one in read.items() if name != "host"} == {
        "gpu:0": (A, None),
        "gpu:1": (B, None),
    }
    single = "\n".join(line for line in PAGE.splitlines() if A not in line)
    assert (of(single)["gpu:0"].uuid, of(single)["gpu:0"].device_id) == (B, 0)


def test_gpu_lost_by_dcgm_is_not_reported_as_empty() -> None:
    page = PAGE.replace(f'total_bytes{{gpu_uuid="{A}"}} 25769803776', f'total_bytes{{gpu_uuid="{A}"}} 0')
    page = page.replace(f'used_bytes{{gpu_uuid="{A}"}} 534773760', f'used_bytes{{gpu_uuid="{A}"}} 0')
    lost, other = of(page, A, B)["gpu:0"], of(page, A, B)["gpu:1"]
    assert "or it cannot read the device (see its log)" in lost.error
    assert (lost.used_bytes, lost.utilisation) == (None, None)
    assert (other.error, other.used_bytes) == ("", 1024 * MIB)


def test_gpu_missing_on_page_is_an_error() -> None:
    read = of(PAGE, "GPU-9", B[:12])
    assert "list no GPU with the UUID 'GPU-9'" in read["gpu:0"].error
    assert (read["gpu:1"].uuid, read["gpu:1"].error) == (B, "")


def test_page_without_devices_gives_no_readings() -> None:
    assert list(of("\n".join(line for line in PAGE.splitlines() if "nv_gpu" not in line))) == ["host"]
    assert of("# TYPE nv_inference_count counter\nnv_inference_count 1\n") == {}
    assert of("") == {}


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_invalid_values_are_none(value: str) -> None:
    page = PAGE.replace("nv_cpu_memory_used_bytes 4123484160", f"nv_cpu_memory_used_bytes {value}")
    assert of(page)["host"].used_bytes is None
    assert of(page)["host"].total_bytes


@pytest.mark.parametrize("page", ["nv_cpu_utilization", "nv_cpu_utilization zero", 'nv_gpu_utilization{gpu_uuid="GPU'])
def test_a_broken_page_is_an_error(page: str) -> None:
    with pytest.raises(DeviceError, match="did not return Prometheus metrics"):
        parse(page)


def test_unreachable_page_is_a_device_error() -> None:
    page = MetricsScraper("http://127.0.0.1:1/metrics")
    with pytest.raises(
        DeviceError, match=r"the devices cannot be read: .*127\.0\.0\.1:1/metrics cannot be read"
    ) as told:
        TritonMetricsSource(page).read()
    assert told.value.details["url"] == page.url
    page.close()


@pytest.mark.triton
def test_real_triton_without_gpu_reports_host(tmp_path: Path) -> None:
    with running_triton(tmp_path) as triton:
        page = MetricsScraper(triton.server.metrics_url)
        source = TritonMetricsSource(page)
        (host,) = source.read()
        while host.error:  # all is 0 until its first look, two seconds after its start
            assert (host.name, host.total_bytes, host.used_bytes, host.utilisation) == ("host", 0, None, None)
            time.sleep(0.05)
            (host,) = source.read()
        page.close()
    machine = psutil.virtual_memory()
    assert host.total_bytes == machine.total
    assert host.used_bytes is not None
    assert 0 < host.used_bytes < machine.total
    assert host.utilisation is not None
