"""Rollouts through the real gateway under load: three bad versions are withdrawn, a fine one is promoted.

Clients ask all the while, over HTTP and gRPC. The old version must fail none of them, and what the bad version got is
held against the share that was asked for.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from tritonclient.utils import InferenceServerException

from tests.gateway.rollout_models import WIDTH, model, row
from tests.support.api import Api, serving, settings_for
from tests.support.gateway import way

pytestmark = [pytest.mark.triton, pytest.mark.long]

CANARY = {
    "kind": "canary",
    "steps": [{"weight_percent": 20, "seconds": 1}, {"weight_percent": 50, "seconds": 1}],
    "minimum_requests": 40,
}
SHADOW = {"kind": "shadow", "shadow_seconds": 1, "minimum_requests": 60}
PINNED = {"kind": "manual"}
IN_FLIGHT = 4
"""Requests in flight when the decision was made: one of each client."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("rollouts"), embedded=True)) as running:
        yield running


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        versions: Answers by the version in them.
        failures: Errors, in words.
        wrong: Answers whose numbers are not those of the version in them.
    """

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wrong: int = 0


class Clients:
    """Two clients over HTTP and two over gRPC that ask one model in a loop through the gateway."""

    def __init__(self, api: Api, name: str, scales: dict[str, float]) -> None:
        assert api.plane.gateway is not None
        self._http_url = api.plane.gateway.http_url.removeprefix("http://")
        self._grpc_url = api.plane.gateway.grpc_url
        self._name = name
        self._scales = scales
        self.seen = Seen()

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Seen]:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._run(kind, seed, stop)) for seed, kind in enumerate(("http", "grpc") * 2)]
        try:
            yield self.seen
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _run(self, kind: str, seed: int, stop: asyncio.Event) -> None:
        library: Any = http_client if kind == "http" else grpc_client
        chance = np.random.default_rng(seed)
        url = self._http_url if kind == "http" else self._grpc_url
        async with library.InferenceServerClient(url) as client:
            while not stop.is_set():
                x = row(chance)
                tensor = library.InferInput("x", list(x.shape), "FP32")
                tensor.set_data_from_numpy(x)
                try:
                    answer = await client.infer(self._name, [tensor])
                except InferenceServerException as error:
                    self.seen.failures.append(str(error))
                    continue
                said = answer.get_response()
                named, version = (
                    (said["model_name"], said["model_version"])
                    if kind == "http"
                    else (said.model_name, said.model_version)
                )
                assert named == self._name
                self.seen.versions[version] += 1
                self.seen.wrong += not np.allclose(answer.as_numpy("y"), x * self._scales[version])


def publish(api: Api, folder: Path, name: str, **second: Any) -> None:
    api.publish(name, model(folder / "1.onnx"))
    # The same model published twice makes a second version only with force.
    api.publish(name, model(folder / "2.onnx", **second), force=True)
    assert api.deploy(f"{name}:1")["state"] == "succeeded"


async def rolled_out(api: Api, name: str, strategy: dict[str, Any], scales: dict[str, float]) -> tuple[Any, Seen]:
    """Roll version 2 out under load; return how it ended and what clients saw."""
    clients = Clients(api, name, scales)
    async with clients.asking() as seen:
        body = {"reference": f"{name}:2", "settings": {"rollout": strategy}}
        await asyncio.to_thread(lambda: api.ok(api.http.put(f"/v1/deployments/{name}", json=body), 202))
        end = time.monotonic() + 200
        while (found := await asyncio.to_thread(rollout, api, name))["phase"] == "running":
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)
        answered = seen.versions.total()
        while seen.versions.total() < answered + 50:  # and for a while after it
            await asyncio.sleep(0.05)
        if found["phase"] == "promoted":
            while await asyncio.to_thread(serving_version, api, name) != 2:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            promoted = seen.versions["2"]
            while seen.versions["2"] < promoted + 50:
                await asyncio.sleep(0.05)
    print(name, found["phase"], found["message"])
    print(seen.versions, len(seen.failures), seen.failures[:1], found["old"], found["new"])
    assert seen.wrong == 0
    return found, seen


def rollout(api: Api, name: str) -> dict[str, Any]:
    return api.ok(api.http.get(f"/v1/rollouts/{name}"))


def serving_version(api: Api, name: str) -> int | None:
    status = api.ok(api.http.get(f"/v1/deployments/{name}"))["status"]
    version: int | None = status["servers"][0]["serving_version"]
    return version


async def test_a_slower_version_is_withdrawn(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path, "slower", slow=True)
    found, seen = await rolled_out(api, "slower", CANARY, {"1": 1.0, "2": 1.0})
    assert found["phase"] == "aborted"
    assert "is worse in p50" in found["message"] or "is worse in p99" in found["message"]
    assert found["new"]["p50_seconds"] > 1.25 * found["old"]["p50_seconds"]
    assert seen.failures == []
    assert serving_version(api, "slower") == 1


async def test_a_version_that_fails_every_tenth_request_is_withdrawn(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path, "failing", fails_above=0.9)
    found, seen = await rolled_out(api, "failing", CANARY, {"1": 1.0, "2": 1.0})
    assert found["phase"] == "aborted"
    assert "is worse in failures" in found["message"]
    # Every failure that a client saw was the new version's.
    assert found["old"]["failures"] == 0
    assert found["new"]["failures"] <= len(seen.failures) <= found["new"]["failures"] + IN_FLIGHT
    assert all("out of" in failure for failure in seen.failures), seen.failures


async def test_shadow_finds_version_with_wrong_outputs(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path, "wrong", scale=1.1)
    found, seen = await rolled_out(api, "wrong", SHADOW, {"1": 1.0, "2": 1.1})
    assert found["phase"] == "aborted"
    assert "is worse in differences" in found["message"]
    assert found["differing"] == found["compared"] > 0
    assert seen.failures == []
    assert set(seen.versions) == {"1"}, "no client got an answer of the new version"


@pytest.mark.parametrize("strategy", [CANARY, SHADOW], ids=["canary", "shadow"])
async def test_good_version_is_promoted(api: Api, tmp_path: Path, strategy: dict[str, Any]) -> None:
    name = f"fine-{strategy['kind']}"
    publish(api, tmp_path, name)
    found, seen = await rolled_out(api, name, strategy, {"1": 1.0, "2": 1.0})
    assert found["phase"] == "promoted", found
    assert "version 2 is no worse" in found["message"]
    assert seen.failures == []
    assert serving_version(api, name) == 2
    history = api.ok(api.http.get(f"/v1/deployments/{name}/revisions"))["items"]
    assert any("requests failed" in item["reason"] for item in history), "the history has decisions with their numbers"


async def test_all_requests_are_measured_if_there_are_few(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path, "quiet")
    strategy = {"kind": "canary", "steps": [{"weight_percent": 1, "seconds": 600}]}
    body = {"reference": "quiet:2", "settings": {"rollout": strategy}}
    await asyncio.to_thread(lambda: api.ok(api.http.put("/v1/deployments/quiet", json=body), 202))
    end = time.monotonic() + 60
    while await asyncio.to_thread(way, api, "quiet") != "split":
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    clients = Clients(api, "quiet", {"1": 1.0, "2": 1.0})
    async with clients.asking() as seen:
        while seen.versions.total() < 40:
            await asyncio.sleep(0.01)
    found = await asyncio.to_thread(lambda: api.ok(api.http.post("/v1/rollouts/quiet/abort")))
    assert found["old"]["requests"] + found["new"]["requests"] == seen.versions.total() < 500, seen


async def test_request_that_names_version_gets_it(api: Api, tmp_path: Path) -> None:
    publish(api, tmp_path, "pinned", scale=2.0)
    body = {"reference": "pinned:2", "settings": {"rollout": PINNED}}
    api.ok(api.http.put("/v1/deployments/pinned", json=body), 202)
    end = time.monotonic() + 60
    while rollout(api, "pinned")["step"] == 0:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert api.plane.gateway is not None
    x = np.ones((1, WIDTH), np.float32)

    def inputs(library: Any) -> list[Any]:
        tensor = library.InferInput("x", [1, WIDTH], "FP32")
        tensor.set_data_from_numpy(x)
        return [tensor]

    async with http_client.InferenceServerClient(api.plane.gateway.http_url.removeprefix("http://")) as http:

        async def over_http(**how: Any) -> float:
            return float((await http.infer("pinned", inputs(http_client), **how)).as_numpy("y")[0, 0])

        while await over_http(headers={"x-model-version": "2"}) != 2.0:  # until the gateway has learnt of it
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert await over_http() == 1.0
        assert await over_http(model_version="2") == 2.0
        assert await over_http(model_version="1") == 1.0
        assert await over_http(parameters={"x-model-version": "2"}) == 2.0
        with pytest.raises(InferenceServerException, match="unknown model"):
            await over_http(model_version="9")
    async with grpc_client.InferenceServerClient(api.plane.gateway.grpc_url) as grpc:

        async def over_grpc(**how: Any) -> float:
            return float((await grpc.infer("pinned", inputs(grpc_client), **how)).as_numpy("y")[0, 0])

        assert await over_grpc() == 1.0
        assert await over_grpc(headers={"x-model-version": "2"}) == 2.0
        assert await over_grpc(model_version="2") == 2.0
        assert await over_grpc(model_version="1") == 1.0
        assert await over_grpc(parameters={"x-model-version": "2"}) == 2.0
        with pytest.raises(InferenceServerException, match="unknown model"):
            await over_grpc(model_version="9")
    found = rollout(api, "pinned")
    assert (found["new"]["requests"] >= 6, found["phase"]) == (True, "running")
    api.ok(api.http.post("/v1/rollouts/pinned/abort"))
