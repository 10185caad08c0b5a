"""Reads one GPU or MIG instance through NVML.

Each field is read separately: a field that the device, its driver or the permissions do not support is None and does
not affect the others. The loss of the GPU is not a missing field; it ends the reading with an error.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

logger = logging.getLogger(__name__)

LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND})
"""Errors that only a reset of the GPU or of the machine fixes."""

_NO_MIG = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})

_THROTTLE_REASONS = {
    # Idle (bit 0) is left out because it is not a problem.
    pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "applications_clocks_setting",
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "sw_thermal_slowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hw_thermal_slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    pynvml.nvmlClocksThrottleReasonDisplayClockSetting: "display_clock_setting",
}

Handle = Any
"""An NVML handle; it must not be kept across an `nvmlInit`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The values of a device; None means that a value is not supported."""

    total_bytes: int
    used_bytes: int
    processes: Mapping[int, int] | None
    utilisation: float | None
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None
    ecc_corrected: int | None
    ecc_uncorrected: int | None
    throttle_reasons: tuple[str, ...] | None


def read_facts(handle: Handle) -> Facts:
    """Read all values of a device.

    Raises:
        pynvml.NVMLError: The device is lost, or its memory cannot be read.
    """
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    utilisation = optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    temperature = _first(
        lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
        lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),  # drivers before R570
    )
    return Facts(
        total_bytes=memory.total,
        # Not `used`: with some drivers it excludes the driver's own share, which is not available either.
        used_bytes=memory.total - memory.free,
        processes=_processes(handle),
        utilisation=None if utilisation is None else utilisation.gpu / 100,
        temperature_celsius=None if temperature is None else float(temperature),
        power_watts=_watts(optional(pynvml.nvmlDeviceGetPowerUsage, handle)),
        power_limit_watts=_watts(optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        ecc_corrected=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        ecc_uncorrected=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        throttle_reasons=_throttle_reasons(handle),
    )


def mig_handles(handle: Handle) -> list[tuple[int, Handle]] | None:
    """Return a GPU's MIG instances with their numbers; None if it is not in MIG mode.

    Raises:
        pynvml.NVMLError: The mode cannot be read. Assuming no MIG mode could load models where none can be loaded.
    """
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if error.value in _NO_MIG:
            return None
        raise
    if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append((number, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:  # the numbers have gaps
                raise
    return found


def optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML for an optional value.

    Returns:
        The answer; None if the value is not supported, not permitted or not available.

    Raises:
        pynvml.NVMLError: The GPU is lost.
    """
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if error.value in LOST:
            raise
        logger.debug("%s: %s", getattr(function, "__name__", "NVML"), error)
        return None


def _first(*functions: Callable[[], Any]) -> Any:
    """Return the first answer of several functions: newer names come first, and older drivers lack them."""
    for function in functions:
        answer = optional(function)
        if answer is not None:
            return answer
    return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _ecc_errors(handle: Handle, kind: int) -> int | None:
    count: int | None = optional(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC)
    return count


def _throttle_reasons(handle: Handle) -> tuple[str, ...] | None:
    bits = _first(
        lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),  # drivers before R535
    )
    return None if bits is None else tuple(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)


def _processes(handle: Handle) -> Mapping[int, int] | None:
    """Return bytes by process; None if none of NVML's lists has them."""
    lists = [
        _first(
            lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
            lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
        ),
        _first(
            lambda: pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3(handle),
            lambda: pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v2(handle),
        ),
        _first(
            lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle),
            lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2(handle),
        ),
    ]
    told = [process for found in lists if found is not None for process in found]
    found: dict[int, int] = {}
    for process in told:
        if process.usedGpuMemory is not None:
            # A process that uses compute and graphics is in two lists, with the same value.
            found[process.pid] = max(found.get(process.pid, 0), process.usedGpuMemory)
    silent = all(one is None for one in lists) or (told and not found)
    return None if silent else found
