"""Sequences through the gateway: every request of one reaches the replica that has its state, on two real Tritons."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from controlplane.domain.names import candidate_name
from controlplane.gateway.sequence_steps import grpc_step, http_step
from controlplane.gateway.sequences import Sequences, SequenceStep, place
from controlplane.settings import GatewaySettings, TritonServerSettings, TritonSettings
from tests.support.api import Api, serving, settings_for
from tests.support.gateway import until, urls, way
from tests.support.triton import running_triton
from tests.triton_format import directories
from tests.triton_format.conftest import publish

SERVERS = ("a", "b")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A gateway before two Tritons, with a model of two versions: sums, and sums times 100."""
    folder = tmp_path_factory.mktemp("sequences")
    with ExitStack() as stack:
        tritons = {name: stack.enter_context(running_triton(folder / name)) for name in SERVERS}
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
            gateway=GatewaySettings(enabled=True, drain_timeout_seconds=60, sequence_timeout_seconds=600),
        )
        running = stack.enter_context(serving(settings))
        for factor in (1.0, 100.0):
            publish(running, "sums", directories.counting(factor))
        assert running.deploy("sums:1", min_replicas=2)["state"] == "succeeded"
        until("both servers", lambda: servers_of(running) == SERVERS)
        yield running


def servers_of(api: Api) -> tuple[str, ...]:
    """The servers that new sequences may get."""
    for route in api.ok(api.http.get("/v1/gateway"))["models"]:
        if route["model"] == "sums":
            return tuple(route["servers"])
    return ()


def bound_to(api: Api, sequence: int) -> tuple[str, str]:
    """The server of an open sequence, and the name of its model there; empty if it is not open."""
    gateway = api.plane.gateway
    assert gateway is not None
    found = gateway.activator.router.sequences.find("sums", SequenceStep(str(sequence)))
    return (found.server, found.triton_name) if found else ("", "")


@dataclass
class Client:
    """Clients of both protocols, which take turns."""

    http: Any
    grpc: Any
    sums: Counter[int] = field(default_factory=Counter)

    def step(self, sequence: int, *, start: bool = False, end: bool = False, kind: Any = None) -> float:
        """Send the next request of a sequence, and return its answer by what it must be: the version's factor."""
        kind = kind or (triton_http if (sequence + self.sums[sequence]) % 2 else triton_grpc)
        tensor = kind.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([sequence], np.float32))
        client = self.http if kind is triton_http else self.grpc
        answer = client.infer("sums", [tensor], sequence_id=sequence, sequence_start=start, sequence_end=end)
        assert (
            answer.get_response()["model_name"] if kind is triton_http else answer.get_response().model_name
        ) == "sums"
        self.sums[sequence] += 1
        return float(answer.as_numpy("y")[0]) / (self.sums[sequence] * sequence)


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with (
        closing(triton_http.InferenceServerClient(urls(api)[0], network_timeout=120.0)) as http,
        closing(triton_grpc.InferenceServerClient(urls(api)[1])) as grpc,
    ):
        yield Client(http, grpc)


@pytest.mark.triton
def test_requests_of_a_sequence_reach_one_server_over_both_protocols(api: Api, client: Client) -> None:
    assert way(api, "sums") == "activator"
    sequences = range(1, 13)
    assert {client.step(one, start=True) for one in sequences} == {1.0}
    where = {one: bound_to(api, one)[0] for one in sequences}
    assert set(where.values()) == set(SERVERS)
    for _ in range(2):
        assert {client.step(one) for one in sequences} == {1.0}
    assert {client.step(one, end=True) for one in sequences} == {1.0}
    assert {bound_to(api, one) for one in sequences} == {("", "")}
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        client.step(1)


@pytest.mark.triton
def test_messages_of_a_stream_reach_the_servers_of_their_sequences(api: Api) -> None:
    answers: list[Any] = []
    with triton_grpc.InferenceServerClient(urls(api)[1]) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        for step in range(3):
            for sequence in range(1, 7):
                tensor = triton_grpc.InferInput("x", [1], "FP32")
                tensor.set_data_from_numpy(np.array([sequence], np.float32))
                client.async_stream_infer(
                    "sums", [tensor], request_id=str(sequence), sequence_id=sequence, sequence_start=step == 0,
                    sequence_end=step == 2,
                )  # fmt: skip
        until("all answers", lambda: len(answers) == 18)
        client.stop_stream()
    found: dict[int, list[float]] = {}
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        found.setdefault(int(answer.get_response().id), []).append(float(answer.as_numpy("y")[0]))
    assert found == {one: [one, 2.0 * one, 3.0 * one] for one in range(1, 7)}


@pytest.mark.triton
def test_new_gateway_finds_the_server_of_a_sequence_by_its_id(api: Api, client: Client) -> None:
    gateway = api.plane.gateway
    assert gateway is not None
    sequences = range(21, 27)
    for one in sequences:
        client.step(one, start=True)
    for server in SERVERS:
        gateway.activator.router.sequences.drop(server, "sums")
    assert {client.step(one, end=True) for one in sequences} == {1.0}


@pytest.mark.triton
def test_unload_of_a_replica_waits_for_its_open_sequences(api: Api, client: Client) -> None:
    sequences = range(31, 39)
    for one in sequences:
        client.step(one, start=True)
    where = {one: bound_to(api, one)[0] for one in sequences}
    body = {"reference": "sums:1", "settings": {"min_replicas": 1}}
    api.ok(api.http.put("/v1/deployments/sums", json=body), 202)
    until("one server is drained", lambda: len(servers_of(api)) == 1)
    (kept,) = servers_of(api)
    left = next(one for one in sequences if where[one] != kept)
    assert {client.step(one) for one in sequences} == {1.0}
    client.step(99, start=True, end=True)
    for one in sequences:
        if one != left:
            assert client.step(one, end=True) == 1.0
    again = 40
    client.step(again, start=True)
    assert bound_to(api, again)[0] == kept, "a new sequence goes to the server that stays"
    assert client.step(again, end=True) == 1.0
    assert loaded(api, where[left], "sums")
    assert client.step(left, end=True) == 1.0
    until("it is unloaded", lambda: not loaded(api, where[left], "sums"))
    assert api.deploy("sums:1", min_replicas=2)["state"] == "succeeded"
    until("both servers", lambda: servers_of(api) == SERVERS)


@pytest.mark.triton
def test_sequence_stays_with_its_version_in_a_rollout_and_after_it(api: Api, client: Client) -> None:
    strategy = {"kind": "canary", "steps": [{"weight_percent": 50, "seconds": 600}], "error": 1e-12}
    settings = {"min_replicas": 2, "rollout": {**strategy, "latency_tolerance": 100}}
    api.ok(api.http.put("/v1/deployments/sums", json={"reference": "sums:2", "settings": settings}), 202)
    splits = api.plane.gateway.activator.splits  # type: ignore[union-attr]
    until("both servers have both", lambda: (one := splits.get("sums")) and one.servers == SERVERS and one.weight)
    sequences = range(101, 141)
    first = {one: client.step(one, start=True) for one in sequences}
    assert set(first.values()) == {1.0, 100.0}
    assert {one: client.step(one) for one in sequences} == first
    new = next(one for one in sequences if first[one] == 100.0)
    server, name = bound_to(api, new)
    assert name == candidate_name("sums")
    api.ok(api.http.post("/v1/rollouts/sums/abort"))
    until("the rollout has ended", lambda: splits.get("sums") is None)
    assert {one: client.step(one, end=one != new) for one in sequences} == first
    assert loaded(api, server, name)
    assert client.step(new, kind=triton_http) == 100.0
    assert client.step(new, kind=triton_grpc, end=True) == 100.0
    until("the candidate is unloaded", lambda: not loaded(api, server, name))


def loaded(api: Api, server: str, name: str) -> bool:
    """Whether a server answers requests to a model."""
    (one,) = [one for one in api.plane.reconciler.servers() if one.name == server]
    with triton_grpc.InferenceServerClient(one.grpc_url) as client:
        return bool(client.is_model_ready(name))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sequence_ends_with_its_last_request_or_when_idle() -> None:
    clock = Clock()
    sequences = Sequences(clock)
    one, other = SequenceStep("1", start=True), SequenceStep("2", start=True)
    first = sequences.begin("m", one, "a", "1", 10.0)
    sequences.begin("m", other, "a", "1", 10.0)
    clock.now = 9
    with sequences.used(first, one):
        clock.now = 100
        assert sequences.count("a", "m") == 1, "a request in flight keeps it open"
    assert sequences.find("m", one) is first
    with sequences.used(first, SequenceStep("1", end=True)):
        assert sequences.find("m", one) is first
    assert sequences.find("m", one) is None
    assert sequences.find("m", other) is None


async def test_wait_for_open_sequences_is_bounded() -> None:
    clock = Clock()
    sequences = Sequences(clock)
    sequences.begin("m", SequenceStep("1"), "a", "1", 1000.0)
    sequences.begin("m", SequenceStep("2"), "b", "1", 1000.0)
    assert await sequences.ended("a", "m", 0.01) == 1
    assert sequences.count("a", "m") == 0
    assert sequences.count("b", "m") == 1
    clock.now = 2000
    assert await sequences.ended("b", "m", 60.0) == 0


def test_server_that_leaves_moves_no_other_sequence() -> None:
    ids = [str(number) for number in range(300)]
    before = {one: place(("a", "b", "c"), "m", one) for one in ids}
    assert min(Counter(before.values()).values()) > 50
    after = {one: place(("a", "c"), "m", one) for one in ids}
    assert all(after[one] == before[one] for one in ids if before[one] != "b")


def test_step_is_read_from_what_clients_send() -> None:
    def http(body: bytes, *headers: tuple[bytes, bytes]) -> SequenceStep | None:
        return http_step(headers, body, inflated_max=1000)

    assert http(b'{"parameters": {"sequence_id": 5, "sequence_start": true}}') == SequenceStep("5", start=True)
    assert http(b'{"text": "a", "sequence_id": "x", "sequence_end": true}') == SequenceStep("x", end=True)
    length = (b"Inference-Header-Content-Length", b"36")
    assert http(b'{"parameters": {"sequence_id":  7}}  \xff\x00', length) == SequenceStep("7")
    import gzip

    assert http(gzip.compress(b'{"sequence_id": 8}'), (b"Content-Encoding", b"gzip")) == SequenceStep("8")
    assert http(gzip.compress(b'{"sequence_id": 8}' + b" " * 5000), (b"content-encoding", b"gzip")) == SequenceStep("8")
    for body in (b"", b"[]", b'["sequence_id"]', b'{"sequence_id": 0}', b'{"sequence_id": true}', b'{"sequence_id": '):
        assert http(body) is None
    assert http(b"sequence_id", (b"content-encoding", b"gzip")) is None

    request = service_pb2.ModelInferRequest(model_name="m")
    assert grpc_step(request.SerializeToString()) is None
    request.parameters["sequence_id"].string_param = "abc"
    request.parameters["sequence_end"].bool_param = True
    assert grpc_step(request.SerializeToString()) == SequenceStep("abc", end=True)
    request.parameters["sequence_id"].uint64_param = 2**63
    assert grpc_step(request.SerializeToString()) == SequenceStep(str(2**63), end=True)
