"""Counters that start again at zero lose nothing; pages are read as Triton writes them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.metrics import LatencySource
from controlplane.errors import TritonError
from controlplane.monitoring.monitor import MAX_VERSIONS, Monitor, ScrapeTarget
from controlplane.monitoring.series import COLUMNS, INDEX, Series
from controlplane.monitoring.stats import histogram_quantile, latency, slow
from controlplane.settings import MonitoringSettings
from controlplane.triton.metrics_page import QUANTILES, MetricsParser, VersionSample

PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="net",version="1"} %(good)d
nv_inference_request_failure{model="net",reason="OTHER",version="1"} 0
nv_inference_request_failure{model="net",reason="REJECTED",version="1"} %(bad)d
nv_inference_request_failure{model="net",reason="NEW_ONE",version="1"} 1
nv_inference_count{model="net",version="1"} %(inferences)d
nv_inference_exec_count{model="net",version="1"} %(good)d
nv_inference_request_duration_us{model="net",version="1"} 2000000
nv_inference_pending_request_count{model="net",version="1"} 3
nv_inference_request_summary_us_count{model="net",version="1"} 10
nv_inference_request_summary_us_sum{model="net",version="1"} 120463
nv_inference_request_summary_us{model="net",version="1",quantile="0.5"} 1000
nv_inference_request_summary_us{model="net",version="1",quantile="0.9"} 2000
nv_inference_request_summary_us{model="net",version="1",quantile="0.95"} 3000
nv_inference_request_summary_us{model="net",version="1",quantile="0.99"} 4000
nv_inference_request_summary_us{model="net",version="1",quantile="0.999"} 5000
nv_inference_request_summary_us{model="idle",version="7",quantile="0.5"} Nan
nv_cpu_utilization 0.25
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
"""


def page(good: int, bad: int = 0, inferences: int | None = None) -> str:
    return PAGE % {"good": good, "bad": bad, "inferences": good if inferences is None else inferences}


def sample(requests: float, **more: float) -> VersionSample:
    return VersionSample({"requests": requests, **more})


def test_successive_pages_are_parsed() -> None:
    reader = MetricsParser()
    for good in (10, 10, 12):
        found = reader.read(page(good, bad=2, inferences=30))
        assert list(found.versions) == [("net", 1)]  # of the other there is nothing but NaN
        version = found.versions["net", 1]
        assert version.counters["requests"] == good
        assert (version.counters["failed:REJECTED"], version.counters["failed:OTHER"]) == (2, 1)
        assert version.counters["inferences"] == 30
        assert version.counters["request_seconds"] == pytest.approx(2)
        assert version.pending == 3
        assert version.quantiles[0.99] == pytest.approx(0.004)
        assert (found.cpu_utilisation, found.gpu_utilisation) == (0.25, {"GPU-1": 0.5})


def test_lines_of_several_gpus_are_added_with_unusual_names() -> None:
    text = (
        'nv_inference_request_success{gpu_uuid="a",model="x{\\"y\\\\",version="1"} 1\n'
        'nv_inference_request_success{gpu_uuid="b",model="x{\\"y\\\\",version="1"} 2\n'
        'nv_inference_request_summary_us{gpu_uuid="a",model="x{\\"y\\\\",version="1",quantile="0.99"} 7\n'
        'nv_inference_request_summary_us{gpu_uuid="b",model="x{\\"y\\\\",version="1",quantile="0.99"} 5\n'
        'nv_inference_request_success{model="x",version="none"} 5\n'
    )
    found = MetricsParser().read(text)
    assert list(found.versions) == [('x{"y\\', 1)]
    assert found.versions['x{"y\\', 1].counters == {"requests": 3}
    assert found.versions['x{"y\\', 1].quantiles[0.99] == pytest.approx(7e-6)


def test_invalid_page_is_reported() -> None:
    with pytest.raises(TritonError, match="did not return Prometheus metrics"):
        MetricsParser().read('nv_inference_count{model="net",version="1"} many\n')
    assert MetricsParser().read("<html>not here</html>").versions == {}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=60))
def test_reload_of_a_model_loses_no_counts(steps: list[tuple[int, bool]]) -> None:
    """A load resets the counter; what was counted between the look before and the load cannot be known."""
    series, counter, before, served = Series(0.0, None), 0, 0, 0
    for at, (count, reloaded) in enumerate(steps, 1):
        if reloaded:
            counter = 0
        counter += count
        # Where the new counter has passed the old one, the difference is all that can be seen.
        served += counter - before if counter >= before else counter
        before = counter
        series.take(sample(counter), float(at))
    assert series.totals[INDEX["requests"]] == served
    assert series.windows.total(600, float(len(steps) + 1))[INDEX["requests"]] == pytest.approx(served)


def test_decreased_counter_resets_all_counters() -> None:
    series = Series(0.0, None)
    series.take(sample(100, inferences=800), 1.0)
    series.take(sample(150, inferences=150), 2.0)  # more requests than before the load already, but fewer inferences
    assert series.totals[INDEX["requests"]] == 250
    assert series.totals[INDEX["inferences"]] == 950


def test_requests_before_first_scrape_are_not_counted() -> None:
    now = 100.0
    monitor = Monitor([ScrapeTarget("one", None)], MonitoringSettings(), clock=lambda: now)
    reader = MetricsParser()
    monitor.take("one", reader.read(page(1000)), None, now)
    assert monitor.traffic_stats("net").requests == 0
    now = 101.0
    monitor.take("one", reader.read(page(1010, bad=5) + page(7).replace("net", "late")), None, now)
    assert monitor.traffic_stats("net", 1, 60, "one").requests == 15
    assert monitor.traffic_stats("net").failures == {"REJECTED": 5}
    assert monitor.traffic_stats("late").requests == 8  # the one of a reason that is new is OTHER
    assert monitor.versions("net") == (("one", 1),)
    now = 102.0
    monitor.take("one", reader.read(""), None, now)  # unloaded
    now = 103.0
    monitor.take(
        "one", reader.read(page(1010)), None, now
    )  # loaded again, and busy: as many as before, all of them new
    assert monitor.traffic_stats("net").requests == 15 + 1010 + 1
    assert monitor.traffic_stats("net", window_seconds=1).covered_seconds == 1
    assert monitor.traffic_stats("unknown").requests == 0


def test_old_versions_are_forgotten_and_their_number_is_bounded() -> None:
    monitor = Monitor([ScrapeTarget("one", None)], MonitoringSettings(), clock=lambda: 0.0)
    reader = MetricsParser()
    at = 0.0
    for version in range(1, 60):
        at += 1
        monitor.take("one", reader.read(page(version).replace('"1"', f'"{version}"')), None, at)
    (watched,) = monitor.watched()
    assert [version for _, version in watched.series] == list(range(60 - MAX_VERSIONS, 60))
    monitor.take("one", reader.read(""), None, at + 7 * 3600)
    assert not watched.series


def test_percentiles_of_a_window_are_weighted_by_requests() -> None:
    series = Series(0.0, None)
    fast = dict.fromkeys(QUANTILES, 0.001)
    series.take(VersionSample({"requests": 100}, quantiles=fast), 1.0)
    series.take(VersionSample({"requests": 400}, quantiles=dict.fromkeys(QUANTILES, 0.005)), 2.0)
    series.take(VersionSample({"requests": 400}, quantiles=dict.fromkeys(QUANTILES, 9.0)), 3.0)  # no requests
    found = latency(series.windows.total(60, 3.0))
    assert found.source is LatencySource.SUMMARY
    assert found.p99_seconds == pytest.approx(0.004, rel=1e-3)


def test_slow_requests_are_derived_from_quantiles() -> None:
    series = Series(0.0, None)
    quantiles = dict(zip(QUANTILES, (0.010, 0.020, 0.030, 0.040, 0.050), strict=True))
    series.take(VersionSample({"requests": 1000}, quantiles=quantiles), 1.0)
    rows = series.windows.read(60, 1.0)
    for limit, share in ((0.005, 0.75), (0.010, 0.5), (0.015, 0.3), (0.040, 0.01), (0.045, 0.0055), (0.050, 0), (9, 0)):
        bad, of = slow(rows, limit)
        assert bad / of == pytest.approx(share, abs=1e-4), limit
    assert slow(series.windows.read(60, 900.0), 0.01) == (0.0, 0.0)


def test_histogram_gives_percentiles_and_slow_requests() -> None:
    """As newer servers have it for decoupled models, with the bounds that Triton takes by default."""
    text = "".join(
        f'nv_inference_first_response_histogram_ms_bucket{{model="net",version="1",le="{bound}"}} {count}\n'
        for bound, count in (("100", 50), ("500", 90), ("2000", 99), ("5000", 100), ("+Inf", 100))
    )
    found = (
        MetricsParser().read(text + 'nv_inference_request_success{model="net",version="1"} 100\n').versions["net", 1]
    )
    bounds = tuple(sorted(found.buckets))
    assert bounds == (0.1, 0.5, 2.0, 5.0, math.inf)
    series = Series(0.0, None, bounds)
    series.take(found, 1.0)
    told = latency(series.windows.total(60, 1.0), bounds)
    assert told.source is LatencySource.HISTOGRAM
    assert (told.p50_seconds, told.p90_seconds, told.p99_seconds) == pytest.approx((0.1, 0.5, 2.0))
    assert slow(series.windows.read(60, 1.0), 0.3, bounds) == pytest.approx((30, 100))
    assert histogram_quantile(0.75, bounds, [50, 90, 99, 100, 100]) == pytest.approx(0.35)
    assert histogram_quantile(0.99, (0.1, math.inf), [0, 10]) == 0.1
    assert latency(np.zeros(len(COLUMNS))).source is LatencySource.NONE
