"""pynvml for real, on a library that answers what each test says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.nvml import GIB, Machine, compiled, gpu
from tests.support.nvml_reading import Reader

Start = Callable[..., Reader]

LOST, RESET_REQUIRED, UNKNOWN, NO_PERMISSION = 15, 16, 999, 4


def test_all_values_of_a_gpu_are_read(machine: Machine, reader: Start) -> None:
    machine.has(count=2, **gpu(0), **gpu(1, used=5 * GIB, throttle="0x64", compute="7:70", graphics="7:71,8:80"))
    read = reader().read()
    assert list(read) == ["gpu:0", "gpu:1"]
    assert read["gpu:0"] == {
        "name": "gpu:0",
        "kind": "gpu",
        "total_bytes": 140 * GIB,
        "used_bytes": 4 * GIB,  # with what the driver keeps for itself
        "uuid": "GPU-0aaa",
        "product": "NVIDIA H200",
        "device_id": 0,
        "allocatable": True,
        "processes": {"100": 1000, "200": 2000},
        "utilisation": 0.37,
        "temperature_celsius": 41.0,
        "power_watts": 118.5,
        "power_limit_watts": 700.0,
        "ecc_corrected": 2,
        "ecc_uncorrected": 0,
        "throttle_reasons": [],  # being idle is not a throttle reason
        "parent": None,
        "error": "",
        "lost": False,
    }
    assert read["gpu:1"]["throttle_reasons"] == ["sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown"]
    assert read["gpu:1"]["processes"] == {"7": 71, "8": 80}, "a process in two lists counts once"


def test_each_reading_has_current_memory(machine: Machine, reader: Start) -> None:
    source = reader()
    for used in (1, 7, 2):
        machine.has(count=1, **gpu(0, used=used * GIB))
        assert source.read()["gpu:0"]["used_bytes"] == (used + 1) * GIB


def test_unsupported_values_are_none(machine: Machine, reader: Start) -> None:
    machine.has(count=1, gpu0__uuid="GPU-0aaa", gpu0__total=10, gpu0__used=4)
    reading = reader().read()["gpu:0"]
    assert (reading["total_bytes"], reading["used_bytes"], reading["error"]) == (10, 4, "")
    kept = {"name", "kind", "uuid", "total_bytes", "used_bytes", "allocatable", "device_id"}
    assert {value for key, value in reading.items() if key not in kept} == {None, "", False}
    assert (reading["device_id"], reading["allocatable"]) == (0, True)


@pytest.mark.parametrize(
    ("field", "code", "attribute"),
    [
        ("power", NO_PERMISSION, "power_watts"),
        ("temperature", UNKNOWN, "temperature_celsius"),
        ("compute", NO_PERMISSION, None),
        ("utilisation", 10, "utilisation"),
    ],
)
def test_failed_value_is_none(machine: Machine, reader: Start, field: str, code: int, attribute: str | None) -> None:
    machine.has(count=1, **gpu(0), **{f"gpu0__fail__{field}": code})
    reading = reader().read()["gpu:0"]
    assert reading["error"] == ""
    if attribute is None:
        assert reading["processes"] == {}, "the other two lists were read"
    else:
        assert reading[attribute] is None
        assert reading["used_bytes"] == 4 * GIB


def test_processes_without_known_memory_are_omitted(machine: Machine, reader: Start) -> None:
    machine.has(count=1, **gpu(0, compute="5:n/a"))
    source = reader()
    assert source.read()["gpu:0"]["processes"] is None
    machine.has(count=1, **gpu(0, compute="5:n/a,6:60"))
    assert source.read()["gpu:0"]["processes"] == {"6": 60}


@pytest.mark.parametrize("code", [LOST, RESET_REQUIRED])
def test_lost_gpu_keeps_its_name_and_hides_no_other(machine: Machine, reader: Start, code: int) -> None:
    source = reader()
    machine.has(count=3, **gpu(0), **gpu(1), **gpu(2))
    source.read()
    machine.has(count=3, gpu1__lost=code, **gpu(0), **gpu(1), **gpu(2, used=0))
    read = source.read()
    assert list(read) == ["gpu:0", "gpu:1", "gpu:2"]
    lost = read["gpu:1"]
    assert lost["lost"]
    assert lost["error"].startswith("NVML reports 'GPU ")
    assert (lost["uuid"], lost["product"], lost["total_bytes"]) == ("GPU-1aaa", "NVIDIA H200", 140 * GIB)
    assert (lost["used_bytes"], lost["processes"], lost["temperature_celsius"]) == (None, None, None)
    assert (read["gpu:0"]["error"], read["gpu:2"]["used_bytes"]) == ("", GIB)
    machine.has(count=3, **gpu(0), **gpu(1), **gpu(2))  # it was reset
    assert source.read()["gpu:1"]["error"] == ""


def test_gpu_lost_during_a_reading_is_reported_lost(machine: Machine, reader: Start) -> None:
    machine.has(count=1, gpu0__fail__power=LOST, **gpu(0))
    reading = reader().read()["gpu:0"]
    assert (reading["lost"], reading["used_bytes"], reading["uuid"]) == (True, None, "GPU-0aaa")


def test_gpu_lost_before_first_reading_is_reported_lost(machine: Machine, reader: Start) -> None:
    machine.has(count=2, gpu0__lost=LOST, **gpu(1))
    read = reader().read()
    assert (read["gpu:0"]["total_bytes"], read["gpu:0"]["uuid"], read["gpu:0"]["lost"]) == (0, "", True)
    assert read["gpu:1"]["uuid"] == "GPU-1aaa"


def test_gpus_keep_names_when_nvml_renumbers_them(machine: Machine, reader: Start) -> None:
    source = reader()
    machine.has(count=2, **gpu(0), **gpu(1))
    source.read()
    machine.has(count=1, order__0=1, **gpu(1))  # number 0 fell off; what was number 1 is number 0 now
    read = source.read()
    assert {name: reading["uuid"] for name, reading in read.items()} == {"gpu:0": "GPU-0aaa", "gpu:1": "GPU-1aaa"}
    assert read["gpu:0"]["lost"]
    assert "NVML no longer lists it" in read["gpu:0"]["error"]
    assert read["gpu:1"]["error"] == ""
    machine.has(count=1, order__0=1, gpu1__lost=LOST, **gpu(1))
    assert [reading["lost"] for reading in source.read().values()] == [True, True]


def test_gpu_without_memory_value_is_not_lost(machine: Machine, reader: Start) -> None:
    machine.has(count=1, gpu0__uuid="GPU-0aaa")
    reading = reader().read()["gpu:0"]
    assert (reading["error"], reading["lost"]) == ("NVML reports 'Not Supported'", False)


def mig(number: int, **instances: object) -> dict[str, object]:
    return gpu(number, mig=1, **instances)


MIGS: dict[str, Any] = {
    "mig0__uuid": "MIG-a",
    "mig0__name": "NVIDIA H200 MIG 1g.18gb",
    "mig0__total": 16 * GIB,
    "mig0__used": GIB,
    "mig0__compute": "9:90",
    "mig2__uuid": "MIG-c",
    "mig2__total": 33 * GIB,
    "mig2__used": 2 * GIB,
}


def test_mig_instances_are_devices(machine: Machine, reader: Start) -> None:
    machine.has(count=2, **mig(0, **MIGS), **gpu(1))
    read = reader().read()
    assert list(read) == ["gpu:0", "gpu:0/mig:0", "gpu:0/mig:2", "gpu:1"]
    assert not read["gpu:0"]["allocatable"]
    assert read["gpu:1"]["allocatable"]
    first, second = read["gpu:0/mig:0"], read["gpu:0/mig:2"]
    assert (first["kind"], first["uuid"], first["parent"], first["total_bytes"], first["used_bytes"]) == (
        "mig",
        "MIG-a",
        "gpu:0",
        16 * GIB,
        GIB,
    )
    assert first["product"] == "NVIDIA H200 MIG 1g.18gb"
    assert first["processes"] == {"9": 90}
    assert (second["uuid"], second["total_bytes"], second["power_watts"]) == ("MIG-c", 33 * GIB, None)
    # CUDA shows a process one instance; without settings it is unknown which is Triton's number 0.
    assert {reading["device_id"] for reading in read.values()} == {None}


def test_lost_gpu_loses_its_instances_but_removed_ones_are_not_lost(machine: Machine, reader: Start) -> None:
    source = reader()
    machine.has(count=1, **mig(0, **MIGS))
    source.read()
    machine.has(count=1, gpu0__lost=LOST, **mig(0, **MIGS))
    read = source.read()
    assert {name: reading["lost"] for name, reading in read.items()} == dict.fromkeys(
        ["gpu:0", "gpu:0/mig:0", "gpu:0/mig:2"], True
    )
    assert read["gpu:0/mig:2"]["total_bytes"] == 33 * GIB
    machine.has(count=1, **mig(0, **{key: value for key, value in MIGS.items() if key.startswith("mig0")}))
    assert list(source.read()) == ["gpu:0", "gpu:0/mig:0"]
    machine.has(count=1, **gpu(0))
    read = source.read()
    assert list(read) == ["gpu:0"]
    assert read["gpu:0"]["allocatable"]


@pytest.mark.parametrize("question", ["mig", "max_migs", "mig_handle"])
def test_gpu_with_unknown_mig_mode_keeps_its_instances(machine: Machine, reader: Start, question: str) -> None:
    source = reader()
    machine.has(count=1, **mig(0, **MIGS))
    source.read()
    machine.has(count=1, **mig(0, **MIGS), **{f"gpu0__fail__{question}": UNKNOWN})
    read = source.read()
    assert list(read) == ["gpu:0", "gpu:0/mig:0", "gpu:0/mig:2"]
    assert not read["gpu:0"]["allocatable"]
    assert all(reading["error"] and not reading["lost"] for reading in read.values())


def test_failed_instance_hides_no_other(machine: Machine, reader: Start) -> None:
    machine.has(count=1, **mig(0, **MIGS), **{"gpu0__mig0__fail__total": UNKNOWN})
    read = reader().read()
    assert read["gpu:0/mig:0"]["error"]
    assert not read["gpu:0/mig:0"]["lost"]
    assert read["gpu:0/mig:2"]["error"] == ""


def test_server_gets_gpus_of_its_settings_in_order(machine: Machine, reader: Start) -> None:
    machine.has(count=3, **gpu(0), **gpu(1), **gpu(2))
    read = reader("GPU-2", "gpu-0AAA", "GPU-9").read()
    assert {name: reading["device_id"] for name, reading in read.items()} == {"gpu:2": 0, "gpu:0": 1, "GPU-9": 2}
    assert read["GPU-9"]["lost"]
    assert "no GPU with the UUID 'GPU-9'" in read["GPU-9"]["error"]


def test_server_may_use_one_mig_instance(machine: Machine, reader: Start) -> None:
    machine.has(count=1, **mig(0, **MIGS))
    read = reader("MIG-c").read()
    assert [(name, reading["device_id"]) for name, reading in read.items()] == [("gpu:0/mig:2", 0)]


def test_missing_driver_is_not_an_error(machine: Machine, reader: Start) -> None:
    machine.has(init=9)
    source = reader()
    assert source.read() == {}
    machine.has(count=1, **gpu(0))  # the driver was loaded
    assert list(source.read()) == ["gpu:0"]


def test_missing_library_is_not_an_error(machine: Machine, reader: Start, tmp_path: Path) -> None:
    assert reader(on=Machine(tmp_path / "nothing" / "libnvidia-ml.so.1", machine.file)).read() == {}


def test_nvml_failure_is_an_error_until_gpus_were_read(machine: Machine, reader: Start) -> None:
    source = reader()
    machine.has(init=18)  # the driver was updated and the machine not started again
    message = source.ask("read")
    assert "version mismatch" in message
    assert "nvidia-smi" in message
    machine.has(count=1, **gpu(0))
    assert source.read()["gpu:0"]["error"] == ""
    machine.has(fail__count=UNKNOWN, init=18)
    reading = source.read()["gpu:0"]
    assert (reading["total_bytes"], reading["used_bytes"], reading["lost"]) == (140 * GIB, None, False)
    assert source.read()["gpu:0"]["error"] == "NVML reports 'RM has detected an NVML/RM version mismatch.'"
    machine.has(count=1, **gpu(0))
    assert source.read()["gpu:0"]["error"] == ""


def test_closed_source_reopens_on_next_read(machine: Machine, reader: Start) -> None:
    machine.has(count=1, **gpu(0))
    source = reader()
    source.read()
    assert source.ask("another") == 1
    assert list(source.read()) == ["gpu:0"], "another source's close is not ours"
    source.ask("close")
    source.ask("close")
    assert list(source.read()) == ["gpu:0"]


def test_several_threads_can_read(machine: Machine, reader: Start) -> None:
    machine.has(count=2, **gpu(0), **mig(1, **MIGS))
    assert reader().ask("threads") == [4]


def test_older_driver_is_supported(machine: Machine, reader: Start, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    old = Machine(compiled(folder, "-DOLD_DRIVER"), machine.file)
    machine.has(count=1, **gpu(0, throttle="0x8"))
    reading = reader(on=old).read()["gpu:0"]
    assert reading["temperature_celsius"] == 41.0
    assert reading["throttle_reasons"] == ["hw_slowdown"]
    assert reading["processes"] == {"100": 1000, "200": 2000}
