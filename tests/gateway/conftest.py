"""A control plane with a gateway before an embedded Triton, shared by the tests that leave it as it is."""

from collections.abc import Iterator

import httpx
import pytest

from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.settings import ReconcilerSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import onnx_join, until, urls, way


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_haproxy(None) is None:  # a machine for which there is no wheel, and that has none of its own
        skip = pytest.mark.skip(reason="HAProxy is not installed")
        for item in items:
            if "gateway" in item.path.parts and item.get_closest_marker("triton"):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A gateway with the models `net` (doubles), `text` (strings) and `lazy` (on demand)."""
    with serving(settings_for(tmp_path_factory.mktemp("gateway"), embedded=True)) as api:
        api.publish("net", onnx_scale(2.0))
        api.ok(api.http.put("/v1/models/net/aliases/champion", json={"version": 1}))
        api.publish("text", onnx_join())
        api.publish("lazy", onnx_scale(3.0))
        for reference, settings in (
            ("net:1", {"max_batch_size": 0}),
            ("text:1", {}),
            ("lazy:1", {"mode": "on-demand"}),
        ):
            assert api.deploy(reference, **settings)["state"] == "succeeded"
        yield api


@pytest.fixture(scope="package")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, str]]]:
    """A gateway that asks for keys, and some of them by name; the key `team` is for `team-*` and `stats` alone."""
    quiet = ReconcilerSettings(interval_seconds=0.3, lease_seconds=15, probe_interval_seconds=3600)
    settings = settings_for(tmp_path_factory.mktemp("keyed"), embedded=True, reconciler=quiet)
    modes = {"team-net": "pinned", "other": "resident", "team-lazy": "on-demand", "stats": "on-demand"}
    with serving(settings) as api:
        for factor, (model, mode) in enumerate(modes.items(), 2):
            api.publish(model, onnx_scale(float(factor)))
            # Without batching, so that a test may send one row or several.
            assert api.deploy(f"{model}:1", mode=mode, max_batch_size=0)["state"] == "succeeded"
        secrets: dict[str, str] = {}
        for name, body in (
            ("root", {"scopes": ["admin"]}),
            ("app", {"scopes": ["infer"]}),
            ("team", {"scopes": ["infer"], "models": ["team-*", "stats"]}),
            ("reader", {"scopes": ["read"]}),
            ("slow", {"scopes": ["infer"], "rate_per_second": 0.1, "burst": 2}),
            ("gone", {"scopes": ["infer"]}),
        ):
            auth = {"authorization": f"Bearer {secrets['root']}"} if "root" in secrets else {}
            made = api.ok(api.http.post("/v1/keys", json={"name": name, **body}, headers=auth), 201)
            secrets[name] = made["secret"]
        api.http.headers["authorization"] = f"Bearer {secrets['root']}"
        api.ok(api.http.delete("/v1/keys/gone"))
        for model in ("team-net", "other"):
            until(f"{model} on the direct way", lambda model=model: way(api, model) == "direct")
            until("HAProxy asks for a key", lambda model=model: _without_key(api, model) == 401)
            until(
                "its report",
                lambda model=model: api.ok(api.http.get(f"/v1/models/{model}/versions/1/reports"))["items"],
            )
        yield api, secrets


def _without_key(api: Api, model: str) -> int:
    """The status of a request through HAProxy without a key."""
    return httpx.post(f"http://{urls(api)[0]}/v2/models/{model}/infer", json={"inputs": []}).status_code
