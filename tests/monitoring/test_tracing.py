"""Traces: from a request to Triton's load in one trace, at a real OTLP receiver; and nothing while they are off."""

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from controlplane import tracing
from controlplane.settings import TracingSettings
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.receiver import Receiver


@pytest.fixture
def collector() -> Iterator[Receiver]:
    one = Receiver()
    one.start()
    yield one
    one.stop()


def spans(collector: Receiver) -> list[Any]:
    found: list[Any] = []
    for one in list(collector.received):
        assert one.path == "/v1/traces"
        request = ExportTraceServiceRequest()

        request.ParseFromString(
            gzip.decompress(one.body) if one.headers.get("content-encoding") == "gzip" else one.body
        )
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                found.extend(scope.spans)
    return found


@pytest.mark.triton
def test_a_deploy_is_one_trace_from_the_request_to_triton(collector: Receiver, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{collector.port}/v1/traces"
    settings = settings_for(tmp_path, embedded=True, tracing=TracingSettings(otlp_endpoint=endpoint))
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serving(settings) as api:
        api.publish("net", onnx_scale(2))
        headers = {"traceparent": f"00-{trace}-{caller}-01"}
        deployed = api.ok(api.http.put("/v1/deployments/net", json={"reference": "net:1"}, headers=headers), 202)
        assert api.operation(deployed["operation_id"])["state"] == "succeeded"
    # What was left is sent when it ends.
    mine = [span for span in spans(collector) if span.trace_id.hex() == trace]
    names = {span.span_id.hex(): span.name for span in mine}
    parents = {(names.get(span.parent_span_id.hex(), span.parent_span_id.hex()), span.name) for span in mine}
    request = "PUT /v1/deployments/{model}"
    for edge in (
        (caller, request),
        (request, "commit deployment"),
        (request, "reconcile stage"),
        ("reconcile stage", "fetch"),
        ("reconcile stage", "stage"),
        (request, "reconcile load"),
        ("reconcile load", "load"),
        ("load", "triton RepositoryModelLoad"),
        (request, "reconcile prove"),
        ("reconcile prove", "prove"),
        ("prove", "triton ModelInfer"),
    ):
        assert edge in parents, f"{edge} is not in {sorted(parents)}"
    (load,) = [span for span in mine if span.name == "reconcile load"]
    assert {one.key: one.value.string_value for one in load.attributes} == {"model": "net", "server": "embedded"}
    # The periodic work of the loop belongs to no trace.
    everything = {span.name for span in spans(collector)}
    assert "triton ModelStatistics" not in everything
    assert "GET /metrics" not in everything


def test_disabled_tracing_imports_nothing_and_creates_no_spans() -> None:
    code = (
        "import sys, controlplane.app\n"
        "from controlplane import tracing\n"
        "with tracing.span('x') as span:\n"
        "    span.update_name('y')\n"
        "    span.set_attribute('a', 1)\n"
        "tracing.carry('net')\n"
        "assert tracing.carried('net') == ''\n"
        "assert tracing.below('x') is tracing.span('y')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_carried_traces_are_bounded_and_end(collector: Receiver) -> None:
    turn_off = tracing.turn_on(f"http://127.0.0.1:{collector.port}/v1/traces")
    try:
        for number in range(1100):
            with tracing.span("request"):
                tracing.carry(f"m{number}")
        assert tracing.carried("m0") == ""
        assert tracing.carried("m1099").startswith("00-")
        tracing.done("m1099")
        assert tracing.carried("m1099") == ""
        tracing.carry("m1098")  # outside of any request
        assert tracing.carried("m1098") == ""
        with tracing.below("untraced"):
            pass
        with tracing.span("request", parent="nonsense"), tracing.below("asked"):
            pass
    finally:
        turn_off()
    names = [span.name for span in spans(collector)]
    assert "untraced" not in names
    assert names.count("asked") == 1
    assert tracing.carried("m1000") == ""
