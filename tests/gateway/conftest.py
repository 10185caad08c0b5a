"""A control plane with a front door before an embedded Triton, shared by the tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from controlplane.gateway.process import find_haproxy
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import onnx_join


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_haproxy(None) is None:  # a machine for which there is no wheel, and that has none of its own
        skip = pytest.mark.skip(reason="HAProxy is not installed")
        for item in items:
            if "gateway" in item.path.parts and item.get_closest_marker("triton"):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A front door with the models `net` (doubles), `text` (strings) and `lazy` (on demand)."""
    with serving(settings_for(tmp_path_factory.mktemp("door"), embedded=True)) as api:
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
