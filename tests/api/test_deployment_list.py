"""The list of deployments: pages, filters, and what it asks of the store. No Triton server."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.registry.artifact import scan
from tests.support.api import Api, serving, settings_for

COUNT = 130


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An instance on a bucket with many deployments."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "artifact").mkdir()
    (folder / "artifact" / "model.onnx").write_bytes(b"never loaded here")
    scanned = scan(folder / "artifact")
    x, y = (TensorSpec(name=name, dtype=DataType.FP32, shape=(-1, 3)) for name in "xy")
    signature = Signature(inputs=(x,), outputs=(y,), batched=True)
    manifest = Manifest(format=Format.ONNX, files=tuple(entry for entry, _ in scanned), signature=signature)
    with serving(settings_for(folder / "data", embedded=False)) as api:
        registry = api.plane.registry
        for number in range(COUNT):
            name = f"m{number:03d}"
            registry.publish(name, manifest, {entry.sha256: path for entry, path in scanned}, actor="tests")
            settings = DeploymentSettings(mode=Mode.ON_DEMAND)
            spec = DeploymentSpec(model=name, reference=f"{name}:1", version=1, settings=settings)
            registry.deployments.put(spec, after=None, actor="tests", reason="")
        registry.update_model("m005", labels={"team": "a"}, actor="tests")
        end = time.monotonic() + 120
        while len(api.plane.reconciler.deployed()) < COUNT:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield api


def _page(api: Api, **query: Any) -> tuple[list[str], str | None]:
    page = api.ok(api.http.get("/v1/deployments", params=query))
    return [one["model"] for one in page["items"]], page["next_cursor"]


def test_pages_are_full_and_continue(many: Api) -> None:
    first, cursor = _page(many)
    assert (len(first), first[0], first[-1]) == (100, "m000", "m099")
    second, end = _page(many, cursor=cursor)
    assert (len(second), second[-1], end) == (30, "m129", None)


def test_filters_apply_before_the_limit(many: Api) -> None:
    assert _page(many, q="M12", limit=4) == (["m120", "m121", "m122", "m123"], _page(many, q="m12", limit=4)[1])
    assert _page(many, name="m00?", limit=10)[1] is None
    assert _page(many, label="team=a") == (["m005"], None)
    assert _page(many, server="nowhere") == ([], None)
    phase = many.ok(many.http.get("/v1/deployments/m129"))["status"]["phase"]
    assert len(_page(many, phase=phase, limit=120)[0]) == 120
    others = {"Ready", "Failed", "Degraded"} - {phase}
    assert _page(many, phase=sorted(others)) == ([], None)
    many.problem(many.http.get("/v1/deployments?fase=Ready"), 422, "invalid-input")


def test_lists_and_lookups_make_few_store_requests(many: Api) -> None:
    def requests() -> float:
        page = many.http.get("/metrics").text
        return sum(float(one) for one in re.findall(r"^\w*store_seconds_count\{[^}]*\} (\S+)", page, re.MULTILINE))

    before = requests()
    for _ in range(5):
        _page(many, limit=1000)
        many.problem(many.http.get("/v1/deployments/m0055"), 404, "not-found")
    assert requests() - before < COUNT
