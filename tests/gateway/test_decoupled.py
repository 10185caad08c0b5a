"""Decoupled models stream through the gateway: over gRPC and as server-sent events, with a key bound to models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from tests.support.api import Api
from tests.support.gateway import until, urls, way
from tests.triton_format import directories
from tests.triton_format.conftest import publish

pytestmark = pytest.mark.triton

Keyed = tuple[Api, dict[str, str]]


@pytest.fixture(scope="module", autouse=True)
def _models(keyed: Keyed) -> None:
    api, _ = keyed
    for model in ("team-stream", "stream"):
        publish(api, model, directories.held_back())
        assert api.deploy(f"{model}:1")["state"] == "succeeded"
        until(f"{model} on the direct route", lambda model=model: way(api, model) == "direct")


def values(*numbers: float) -> list[Any]:
    tensor = triton_grpc.InferInput("x", [len(numbers)], "FP32")
    tensor.set_data_from_numpy(np.array(numbers, np.float32))
    return [tensor]


class Stream:
    """A gRPC stream, and what was answered on it: the request's id and the value, or an error."""

    def __init__(self, client: triton_grpc.InferenceServerClient) -> None:
        self.client = client
        self.answers: list[tuple[str, Any]] = []

    def ask(self, model: str, *numbers: float) -> None:
        self.client.async_stream_infer(model, values(*numbers), request_id=f"{model} {numbers[0]:g}")

    def answered(self, result: Any, error: Any) -> None:
        value = error if error is not None else float(result.as_numpy("y")[0])
        self.answers.append(("" if error is not None else result.get_response().id, value))


@contextmanager
def streaming(api: Api, key: str) -> Iterator[Stream]:
    with triton_grpc.InferenceServerClient(urls(api)[1]) as client:
        stream = Stream(client)
        client.start_stream(stream.answered, headers={"authorization": f"Bearer {key}"})
        try:
            yield stream
        finally:
            client.stop_stream(cancel_requests=True)  # a test that fails leaves a request without its last answer


def test_responses_arrive_over_grpc_while_the_request_runs(keyed: Keyed) -> None:
    api, secrets = keyed
    with streaming(api, secrets["team"]) as stream:
        stream.ask("team-stream", 1, 2, 3)
        until("the first response", lambda: stream.answers == [("team-stream 1", 1.0)])
        stream.ask("stream", 7)
        until("a refusal", lambda: len(stream.answers) == 2)
        assert "but not 'stream'" in str(stream.answers[1][1])
        stream.ask("team-stream", -1)
        until("all responses", lambda: len(stream.answers) == 5)
    assert sorted(answer for answer in stream.answers if answer[0]) == [
        *(("team-stream -1", -1.0),),
        *(("team-stream 1", value) for value in (1.0, 2.0, 3.0)),
    ]


def test_events_arrive_over_http_while_the_request_runs(keyed: Keyed) -> None:
    api, secrets = keyed
    headers = {"authorization": f"Bearer {secrets['team']}"}
    with httpx.Client(base_url=f"http://{urls(api)[0]}", headers=headers, timeout=60) as client:
        asked = client.post("/v2/models/stream/generate_stream", json={"x": [1, 2]})
        assert asked.status_code == 403
        with client.stream("POST", "/v2/models/team-stream/generate_stream", json={"x": [4, 5, 6]}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            events = _events(response)
            assert next(events)["y"] == 4.0
            released = client.post("/v2/models/team-stream/generate_stream", json={"x": [-1]})
            assert released.status_code == 200
            assert [event["y"] for event in events] == [5.0, 6.0]


def test_events_arrive_when_the_first_request_loads_the_model(keyed: Keyed) -> None:
    api, secrets = keyed
    publish(api, "team-later", directories.repeating())
    assert api.deploy("team-later:1", mode="on-demand", keep_alive_seconds=0)["state"] == "succeeded"
    until("it is unloaded", lambda: way(api, "team-later") == "closed")
    headers = {"authorization": f"Bearer {secrets['team']}"}
    with httpx.stream(
        "POST",
        f"http://{urls(api)[0]}/v2/models/team-later/generate_stream",
        json={"x": [4, 5]},
        headers=headers,
        timeout=60,
    ) as response:
        assert response.status_code == 200
        assert [event["y"] for event in _events(response)] == [4.0, 5.0]


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
