"""Parser of a Triton server's metrics page, based on prometheus_client's parser.

Measured on Triton 2.51 (``--metrics-config=summary_latencies=true``): per model and version, counters of requests,
failures by reason, inferences, executions and microseconds by stage; a gauge of pending requests; and summaries whose
quantiles cover about the last minute (``NaN`` before the first request). It has no histograms and silently accepts
``histogram_latencies=true``. According to the source of later servers, that option gives
``nv_inference_first_response_histogram_ms`` for decoupled models. A model on several GPUs has its lines once for each
GPU. A request that is refused before it reaches the model (an input with a wrong name) is in no counter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from controlplane.errors import TritonError
from controlplane.triton.statistics import VersionKey

COUNTERS = {
    "nv_inference_request_success": ("requests", 1.0),
    "nv_inference_count": ("inferences", 1.0),
    "nv_inference_exec_count": ("executions", 1.0),
    "nv_inference_request_duration_us": ("request_seconds", 1e-6),
    "nv_inference_queue_duration_us": ("queue_seconds", 1e-6),
    "nv_inference_compute_input_duration_us": ("compute_input_seconds", 1e-6),
    "nv_inference_compute_infer_duration_us": ("compute_infer_seconds", 1e-6),
    "nv_inference_compute_output_duration_us": ("compute_output_seconds", 1e-6),
}
"""Triton's counters by our name for them, with the factor that converts times to seconds."""

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's failure reasons (core, ``src/constants.h``); an unknown reason counts as OTHER."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
"""The quantiles of Triton's summaries."""

_FAILURE = "nv_inference_request_failure"
_PENDING = "nv_inference_pending_request_count"
_SUMMARY = "nv_inference_request_summary_us"
_HISTOGRAM = "nv_inference_first_response_histogram_ms_bucket"
_GPU = "nv_gpu_utilization"
_CPU = "nv_cpu_utilization"
_NAMES = frozenset((*COUNTERS, _FAILURE, _PENDING, _SUMMARY, _HISTOGRAM, _GPU, _CPU))


@dataclass
class VersionSample:
    """One version's metrics on a page.

    Attributes:
        counters: Values since the load, by the names of `COUNTERS`, and ``failed:<reason>``.
        pending: Requests that wait or run.
        quantiles: Seconds by quantile, over about the last minute; empty if the server does not report any.
        buckets: Number of requests up to each latency in seconds (infinity last), since the load; empty if there are
            none.
    """

    counters: dict[str, float] = field(default_factory=dict)
    pending: float = 0.0
    quantiles: dict[float, float] = field(default_factory=dict)
    buckets: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricsPage:
    """The content of a metrics page.

    Attributes:
        versions: Metrics by Triton name and version.
        gpu_utilisation: Share of the time that a GPU is busy, 0 to 1, by UUID.
        cpu_utilisation: Share of the machine's processors in use, 0 to 1; None if it is not reported.
        bytes: The page's size.
    """

    versions: Mapping[VersionKey, VersionSample]
    gpu_utilisation: Mapping[str, float]
    cpu_utilisation: float | None
    bytes: int


_Line = tuple[str, dict[str, str], float]


class MetricsParser:
    """Parses successive pages of one server.

    A line that is unchanged since the previous page is not parsed again. Counters of unused models do not change, and
    they make up most of a page.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def read(self, text: str) -> MetricsPage:
        """Parse a page.

        Raises:
            TritonError: The text is not in the Prometheus text format.
        """
        known, lines, unread = self._lines, {}, []
        for line in text.splitlines():
            if not line.startswith("nv_") or line[: _end_of_name(line)] not in _NAMES:
                continue
            before = known.get(line)
            if before is None:
                unread.append(line)
            else:
                lines[line] = before
        lines.update(zip(unread, _parse(unread), strict=True))
        self._lines = lines
        return _page(lines, len(text))


def _end_of_name(line: str) -> int:
    brace = line.find("{")
    return brace if brace >= 0 else line.find(" ")


def _parse(lines: list[str]) -> list[_Line]:
    try:
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families("\n".join(lines))
            for sample in family.samples
        ]
    except (ValueError, KeyError, IndexError) as error:
        raise TritonError(f"the server's metrics port did not return Prometheus metrics: {error}") from error


def _page(lines: Mapping[str, _Line], size: int) -> MetricsPage:
    versions: dict[VersionKey, VersionSample] = {}
    gpus: dict[str, float] = {}
    cpu = None
    for name, labels, value in lines.values():
        if name == _GPU:
            gpus[labels.get("gpu_uuid", "")] = value
        elif name == _CPU:
            cpu = value
        elif labels.get("version", "").isdigit() and not math.isnan(value):
            key = (labels.get("model", ""), int(labels["version"]))
            sample = versions.get(key)
            if sample is None:
                sample = versions[key] = VersionSample()
            _take(sample, name, labels, value)
    return MetricsPage(versions, gpus, cpu, size)


def _take(sample: VersionSample, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == _PENDING:
        sample.pending += value
    elif name == _SUMMARY:
        quantile = float(labels.get("quantile", "nan"))
        if quantile in QUANTILES:  # of several GPUs, the slowest
            sample.quantiles[quantile] = max(value * 1e-6, sample.quantiles.get(quantile, 0.0))
    elif name == _HISTOGRAM:
        bound = float(labels.get("le", "inf")) / 1000
        sample.buckets[bound] = sample.buckets.get(bound, 0.0) + value
    else:
        if name == _FAILURE:
            reason = labels.get("reason", "OTHER")
            counter, scale = f"failed:{reason if reason in REASONS else 'OTHER'}", 1.0
        else:
            counter, scale = COUNTERS[name]
        sample.counters[counter] = sample.counters.get(counter, 0.0) + value * scale
