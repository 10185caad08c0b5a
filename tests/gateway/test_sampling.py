"""What HAProxy draws during a rollout: the shares are as requested, and all other requests bypass the activator.

The bounds: a count of n draws of probability p strays so far that ``n KL(count / n, p)`` exceeds b with a probability
of at most ``2 exp(-b)`` (Chernoff). With `_BOUND` the seven comparisons here all hold but once in 10^9 runs.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from controlplane.domain.names import candidate_name
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.sampling import PARTS, sample, weight
from controlplane.domain.rollout.strategy import RolloutStep, RolloutStrategy, StrategyKind
from controlplane.settings import GatewaySettings, TritonServerSettings, TritonSettings
from tests.gateway.test_splitting import split
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import ones, until, urls
from tests.support.triton import running_triton

pytestmark = pytest.mark.slow

_BOUND = 24.0
_REQUESTS = 1500
"""Over each protocol."""


def strays(count: int, n: int, share: float) -> bool:
    """Whether so many of n is what less than one in 10^10 runs would bring."""
    seen = count / n

    def part(p: float, q: float) -> float:
        return p * math.log(p / q) if p else 0.0

    return n * (part(seen, share) + part(1 - seen, 1 - share)) > _BOUND


@given(
    percent=st.floats(0.0001, 99.9999),
    control=st.floats(1, 1000),
    kind=st.sampled_from([StrategyKind.CANARY, StrategyKind.SHADOW, StrategyKind.MANUAL]),
)
def test_new_version_gets_requested_share_of_all_requests(percent: float, control: float, kind: StrategyKind) -> None:
    strategy = RolloutStrategy(kind=kind, steps=(RolloutStep(weight_percent=percent),), control_ratio=control)
    one = split(kind).rollout
    rollout = one.with_changes(settings=one.settings.model_copy(update={"rollout": strategy}))
    parts = sample(rollout)
    assert sample(rollout.with_changes(step_since=None)) == 0
    if kind is not StrategyKind.CANARY:
        assert parts == (PARTS // 4 if kind is StrategyKind.SHADOW else 0)
        return
    assert 0 < parts <= PARTS
    assert parts / PARTS * weight(rollout, parts) == pytest.approx(rules.weight(rollout), rel=1e-12)
    assert weight(rollout, PARTS) == rules.weight(rollout)
    if parts < PARTS:
        assert weight(rollout, parts) <= 1 / (1 + control) + 1e-12, "and the old version is measured at least as often"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A gateway before two Tritons, with a model of two versions on both: the first doubles, the second trebles."""
    folder = tmp_path_factory.mktemp("sampling")
    with ExitStack() as stack:
        tritons = {name: stack.enter_context(running_triton(folder / name)) for name in ("a", "b")}
        servers = tuple(
            TritonServerSettings(
                name=name, grpc_url=one.server.grpc_url, http_url=one.server.http_url, repository=one.server.repository
            )
            for name, one in tritons.items()
        )
        settings = settings_for(
            folder / "plane",
            embedded=False,
            triton=TritonSettings(servers=servers, load_timeout_seconds=60),
            gateway=GatewaySettings(enabled=True, max_sampled_requests_per_second=0),
        )
        running = stack.enter_context(serving(settings))
        for factor in (2.0, 3.0):
            running.publish("net", onnx_scale(factor))
        assert running.deploy("net:1", min_replicas=2, max_batch_size=0)["state"] == "succeeded"
        yield running


def begin(api: Api, **strategy: Any) -> None:
    """Roll version 2 out, never to be withdrawn by what is measured, and wait until HAProxy draws."""
    lasting = {"error": 1e-12, "latency_tolerance": 100, "difference": {"absolute": 10, "relative": 0}}
    body = {
        "reference": "net:2",
        "settings": {"min_replicas": 2, "max_batch_size": 0, "rollout": {**lasting, **strategy}},
    }
    api.ok(api.http.put("/v1/deployments/net", json=body), 202)
    splits = api.plane.gateway.activator.splits  # type: ignore[union-attr]
    until("both servers have both", lambda: (one := splits.get("net")) and one.servers == ("a", "b"))
    until("a split", lambda: route(api)["way"] == "split")


def end(api: Api) -> dict[str, Any]:
    """Abort it; return how it stood."""
    found = api.ok(api.http.post("/v1/rollouts/net/abort"))
    until("the direct way", lambda: route(api)["way"] == "direct")
    until(
        "the new version is gone", lambda: not any(candidate_is_loaded(one) for one in api.plane.reconciler.servers())
    )
    return found


def candidate_is_loaded(server: Any) -> bool:
    index = httpx.post(f"{server.http_url}/v2/repository/index", timeout=10).json()
    return any(
        one["name"] == candidate_name("net") and one.get("state", "UNAVAILABLE") != "UNAVAILABLE" for one in index
    )


def route(api: Api) -> dict[str, Any]:
    (found,) = api.ok(api.http.get("/v1/gateway"))["models"]
    return dict(found)


def directly(api: Api) -> int:
    """Requests that HAProxy sent straight to a server."""
    gateway = api.plane.gateway
    assert gateway is not None
    rows = asyncio.run(gateway.api.statistics())
    return sum(int(row["stot"]) for row in rows if row["svname"] == "BACKEND" and row["pxname"][:2] in ("h-", "g-"))


def by_python(api: Api) -> int:
    """Requests that came by the control plane, copies not counted."""
    requests = api.plane.gateway.stats.requests  # type: ignore[union-attr]
    return sum(count for kind, count in requests.items() if (kind.way, kind.version) != ("shadow", "2"))


def counted(api: Api, protocol: str) -> Counter[tuple[str, str, str]]:
    """Requests by way, version and code, as in the Prometheus metrics."""
    found = Counter[tuple[str, str, str]]()
    for family in text_string_to_metric_families(api.http.get("/metrics").text):
        for line in family.samples if family.name == "tritonctl_gateway_model_requests" else ():
            labels = line.labels
            if (labels["model"], labels["protocol"]) == ("net", protocol):
                found[labels["way"], labels["version"], labels["code"]] += int(line.value)
    return found


async def ask(url: str, kind: Any, requests: int) -> Counter[float]:
    """Ask so many times, eight at once; return the factors that came back."""
    left, seen = iter(range(requests)), Counter[float]()
    async with kind.InferenceServerClient(url) as client:

        async def run() -> None:
            for _ in left:
                seen[float((await client.infer("net", ones(kind))).as_numpy("y")[0, 0])] += 1

        await asyncio.gather(*(run() for _ in range(8)))
    return seen


@pytest.mark.triton
@pytest.mark.parametrize("kind", [http_client, grpc_client], ids=["http", "grpc"])
def test_canary_gets_its_share_and_most_requests_use_direct_route(api: Api, kind: Any) -> None:
    begin(api, kind="canary", steps=[{"weight_percent": 10, "seconds": 600}])
    assert route(api)["measured_share"] == 0.2
    before, protocol = (by_python(api), directly(api)), "grpc" if kind is grpc_client else "http"
    told = counted(api, protocol)
    seen = asyncio.run(ask(urls(api)[kind is grpc_client], kind, _REQUESTS))
    # No request is counted twice, and none is missing. The last ones are counted a moment after they are answered.
    until("the count", lambda: by_python(api) + directly(api) == sum(before) + _REQUESTS)
    python = by_python(api) - before[0]
    found = end(api)
    print(seen, python, {name: found[name] for name in ("old", "new", "refused")})
    assert (seen.total(), set(seen)) == (_REQUESTS, {2.0, 3.0})
    assert not strays(seen[3.0], _REQUESTS, 0.1)
    assert not strays(python, _REQUESTS, 0.2)
    assert found["new"]["requests"] == seen[3.0]
    assert found["old"]["requests"] + found["new"]["requests"] == python, "all that went through Python was measured"
    assert not strays(found["new"]["requests"], python, 0.5)
    well, class_of_it = ("OK", "OK") if protocol == "grpc" else ("200", "2xx")
    assert +(counted(api, protocol) - told) == {
        ("direct", "1", class_of_it): _REQUESTS - python,
        ("canary", "1", well): python - seen[3.0],
        ("canary", "2", well): seen[3.0],
    }


@pytest.mark.triton
def test_shadow_gets_copies_of_a_share_of_requests(api: Api) -> None:
    begin(api, kind="shadow", shadow_seconds=600, shadow_share=0.3)
    before = by_python(api), directly(api)
    seen = asyncio.run(ask(urls(api)[1], grpc_client, _REQUESTS))
    until("the count", lambda: by_python(api) + directly(api) == sum(before) + _REQUESTS)
    python = by_python(api) - before[0]

    def copied() -> int:
        evidence = api.plane.gateway.activator.splits.get("net").meter.evidence()  # type: ignore[union-attr]
        return int(evidence.new.requests + evidence.skipped)

    until("all copies", lambda: copied() == python)
    told = counted(api, "grpc")
    assert told["shadow", "1", "OK"] == python
    skipped = api.plane.gateway.activator.splits.get("net").meter.evidence().skipped  # type: ignore[union-attr]
    assert told["shadow", "2", "OK"] == python - skipped
    end(api)
    assert seen == {2.0: _REQUESTS}
    assert not strays(python, _REQUESTS, 0.3)


@pytest.mark.triton
def test_named_version_answers_over_every_protocol(api: Api) -> None:
    """The parameter may follow megabytes of JSON, and the body may be chunked."""
    begin(api, kind="manual")
    url = f"http://{urls(api)[0]}/v2/models/net/infer"
    large = np.ones((8000, 2)).tolist()

    def body(rows: list[list[float]], **more: Any) -> bytes:
        x = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}
        return json.dumps({"inputs": [x], **more}).encode()

    def asked(content: Any, **headers: str) -> float:
        answer = httpx.post(url, content=content, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return float(answer.json()["outputs"][0]["data"][0])

    named = {"parameters": {"x-model-version": "2"}}
    small, long = body([[1.0, 1.0]], **named), body(large, **named)
    assert len(long) > 65_536
    assert asked(small) == asked(long) == 3.0
    refused = httpx.post(url, content=body([[1.0, 1.0]], **named).replace(b'"name": "x"', b'"name": "z"'), timeout=60)
    assert "'net'" in refused.text, "the name under which the new version is loaded is no client's business"
    assert asked(iter([small])) == asked(iter([long[:100], long[100:]])) == 3.0
    assert asked(body(large), **{"x-model-version": "2"}) == 3.0
    assert asked(body([[1.0, 1.0]]), **{"x-tritonctl-drawn": "1"}) == 2.0
    python = by_python(api)
    assert asked(body([[1.0, 1.0]])) == 2.0
    assert by_python(api) == python, "who names none goes directly"
    assert asked(body(large)) == 2.0
    assert asked(body(large), **{"x-model-version": "1"}) == 2.0
    told = counted(api, "http")
    assert (told["by-version", "1", "200"], told["by-version", "2", "200"]) == (1, 5)
    end(api)
