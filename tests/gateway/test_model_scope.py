"""A key that is bound to models reaches no other model, however a request is written: through HAProxy to a real Triton.

What was asked is known by three signs: the name in Triton's answer, the factor by which the model multiplies, and
Triton's own count of the requests to the model that the key is not for.
"""

import json
import socket
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2

from controlplane.errors import InvalidInputError
from controlplane.gateway.grpc_wire import read_names
from tests.cases import gateway_grpc_model_scope
from tests.support import hostile
from tests.support.api import Api
from tests.support.gateway import direct_urls, until, urls
from tests.support.hostile import NAME, framed, tensors, text
from tests.support.http2 import Connection, Reply

pytestmark = pytest.mark.triton

Keyed = tuple[Api, dict[str, str]]
SERVICE = "/inference.GRPCInferenceService/"
FACTORS = {"team-net": 2.0, "other": 3.0, "team-lazy": 4.0}
NAMES = ("team-net", "team-net", "team-net", "team-lazy", "other", "other", "team-net~candidate")
INVALID_ARGUMENT = "3"


def requests_to(api: Api, model: str) -> int:
    """How many requests Triton counts for a model."""
    with triton_grpc.InferenceServerClient(direct_urls(api)[1]) as client:
        (found,) = client.get_inference_statistics(model).model_stats
        return int(found.inference_stats.success.count + found.inference_stats.fail.count)


def headers(key: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("content-type", "application/grpc"), ("te", "trailers"), ("authorization", f"Bearer {key}"), *more]


def in_pieces(random: Random, body: bytes) -> list[bytes]:
    """A body in one piece, or cut at random places."""
    cuts = sorted(random.sample(range(1, len(body)), min(random.choice([0, 0, 1, 2, 5]), len(body) - 1)))
    return [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def answered(reply: Reply) -> Any:
    """Triton's answer; None where there was none."""
    if reply.broken or len(reply.data) < 5 or reply.headers.get("grpc-status", "0") != "0":
        return None
    return service_pb2.ModelInferResponse.FromString(reply.data[5:])


def authorized(message: bytes, key: str) -> str:
    """The name by which a request is let in.

    The activator reads the whole message. HAProxy, for a key for all models, reads the first name, which ends at a
    byte that is zero, for Triton as well.
    """
    try:
        return read_names(message).name
    except InvalidInputError:
        assert key == "app", f"refused here, and answered by Triton: {message!r}"
        end = next(place for place in range(1, len(message)) if message[place] < 0x80) + 1
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(message[1:end]))
        return message[end : end + length].partition(b"\0")[0].decode()


def check(answer: Any, message: bytes, key: str) -> None:
    """The model that was authorized is the one that Triton answers for, and the one that computed it."""
    assert answer.model_name == authorized(message, key), message
    factor = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert set(factor.tolist()) == {FACTORS[answer.model_name]}


def test_stream_with_other_models_is_refused_for_scoped_key(keyed: Keyed) -> None:
    api, secrets = keyed
    found = gateway_grpc_model_scope.main(urls(api)[1], secrets["team"], "team-net", "other", "team-lazy")
    mine = found.pop("1 stream, first message")
    assert mine == "ANSWERED by team-net"
    assert all(outcome.startswith("refused") for outcome in found.values()), found
    assert all("INVALID_ARGUMENT" in found[one] for one in found if one[0] in "234"), found


@pytest.mark.parametrize("key", ["team", "app"])
def test_authorized_model_is_the_one_that_answers(keyed: Keyed, key: str) -> None:
    """Random requests, most of them with something wrong, cut into frames, compressed, twice in one body."""
    api, secrets = keyed
    before, found = requests_to(api, "other"), Counter[str]()
    for seed in range(200):
        random = Random(f"{key} {seed}")
        message = hostile.request(random, NAMES)
        body, more = framed(message), list[tuple[str, str]]()
        match random.randrange(12):
            case 0:
                body, more = framed(zlib.compress(message), 1), [("grpc-encoding", "deflate")]
            case 1:
                body += framed(text(NAME, b"other") + tensors())
            case 2:
                body = framed(message, random.randrange(256))
            case 3:
                body = framed(b"") + body
        pieces, pause = in_pieces(random, body), random.choice([0, 0, 0, 0.01])
        with Connection(urls(api)[1]) as connection:
            reply = connection.ask(SERVICE + "ModelInfer", headers(secrets[key], *more), pieces, pause)
        answer = answered(reply)
        found["refused" if answer is None else answer.model_name] += 1
        if answer is not None:
            check(answer, message, key)
    assert found["team-net"] >= 10, found
    assert found["refused"] >= 10, found
    if key == "team":
        assert not found["other"], found
        assert requests_to(api, "other") == before, "Triton was not even asked"
    else:
        assert found["other"], found


def test_each_message_of_a_random_stream_is_authorized(keyed: Keyed) -> None:
    api, secrets = keyed
    before = requests_to(api, "other")
    messages = [hostile.request(Random(f"stream {seed}"), ("team-net", "other")) for seed in range(60)]
    messages = [text(NAME, b"team-net") + tensors(), *messages, text(NAME, b"team-net") + tensors()]
    body = b"".join(framed(message) for message in messages)
    with Connection(urls(api)[1]) as connection:
        pieces = in_pieces(Random(7), body)
        reply = connection.ask(SERVICE + "ModelStreamInfer", headers(secrets["team"]), pieces)
    found, at = Counter[str](), 0
    while at < len(reply.data):
        size = int.from_bytes(reply.data[at + 1 : at + 5], "big")
        answer = service_pb2.ModelStreamInferResponse.FromString(reply.data[at + 5 : at + 5 + size])
        found["refused" if answer.error_message else answer.infer_response.model_name] += 1
        at += 5 + size
    assert found["team-net"] >= 10, found
    assert found["refused"] >= 10, found
    assert set(found) == {"team-net", "refused"}
    assert requests_to(api, "other") == before


@pytest.mark.parametrize("key", ["team", "app"])
@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("call", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady"])
def test_two_model_names_are_refused_in_every_call(keyed: Keyed, key: str, rows: int, call: str) -> None:
    api, secrets = keyed
    message = text(NAME, b"team-net") + tensors(rows) + text(NAME, b"other")
    with grpc.insecure_channel(urls(api)[1]) as channel:
        method = channel.unary_unary(SERVICE + call)
        metadata = [("authorization", f"Bearer {secrets[key]}")]
        if (key, call) == ("app", "ModelReady"):
            # HAProxy cannot see whose yes or no this is; a key for all models may have both.
            assert method(message, metadata=metadata, timeout=60) == b"\x08\x01"
            return
        with pytest.raises(grpc.RpcError) as refused:
            method(message, metadata=metadata, timeout=60)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_answer_of_other_model_counts_as_error(keyed: Keyed) -> None:
    api, secrets = keyed

    def counted(code: str) -> float:
        page = api.http.get("/metrics").text
        labels = ('model="team-net"', 'protocol="grpc"', 'way="direct"', f'code="{code}"')
        lines = [line for line in page.splitlines() if "gateway_model_requests_total{" in line]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))

    with Connection(urls(api)[1]) as connection:

        def goes_directly() -> bool:
            before = counted("OK")
            connection.ask(
                SERVICE + "ModelInfer", headers(secrets["app"]), [framed(text(NAME, b"team-net") + tensors())]
            )
            return counted("OK") > before

        until("HAProxy knows the key", goes_directly)  # until then the activator answers
        before = {code: counted(code) for code in ("OK", "error")}
        body = framed(text(NAME, b"team-net") + tensors() + text(NAME, b"other"))
        reply = connection.ask(SERVICE + "ModelInfer", headers(secrets["app"]), [body])
    assert reply.headers["grpc-status"] == INVALID_ARGUMENT
    assert "another model answered than the first one that the request names" in reply.headers["grpc-message"]
    assert not reply.data
    assert counted("error") == before["error"] + 1
    assert counted("OK") == before["OK"]


def spoken(address: str, request: bytes, seconds: float = 30) -> tuple[int, bytes]:
    """Status and body of what a server answers to these bytes."""
    host, _, port = address.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(request)
        with suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    return (int(words[1]) if len(words) > 1 else 0), body


BODY = json.dumps(
    {
        "model_name": "other",
        "id": "7",
        "parameters": {"model_name": "other"},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}],
    }
).encode()
TARGETS: Sequence[str] = (
    *("/v2/models/other/infer", "/v2/models/%6fther/infer", "//v2/models/other/infer", "/v2/models//other/infer"),
    *("/v2/models/team-net/../other/infer", "/v2/models/team-net%2f..%2fother/infer", "/v2/./models/other/infer"),
    *("/v2/models/team-net/%2e%2e/other/infer", "/v2/models/team-net\\..\\other/infer", "/v2/models/other;a/infer"),
    *("/v2/models/team-net/infer/../../other/infer", "/v2/models/team-net%00/../other/infer"),
    *("/v2/models/other/infer?/v2/models/team-net/infer", "/v2/models/team-net?/v2/models/other/infer"),
    *("/v2/models/team-net/infer?model_name=other&model=other", "/v2/models/other/infer#/v2/models/team-net/infer"),
    *("http://x/v2/models/other/infer", "http://x/v2/models/team-net/infer", "http:///v2/models/other/infer"),
    *("http://team-net/v2/models/other/infer", "http://x?/v2/models/other/infer", "http://x@y/v2/models/other/infer"),
    *("http://x/v2/models/team-net/infer?@z/v2/models/other/infer", "http:/v2/models/other/infer", "*", "x"),
    *("/v2/models/other/versions/1/infer", "/v2/models/team-net/versions/1/../../../other/infer", "other"),
    *("/v2/models/other~candidate/infer", "/v2/models/team-net@1/infer", "/v2/models/other@latest/infer"),
    *("/v2/models/other", "/v2/models/other/config", "/v2/models/other/stats", "/v2/models/other/ready"),
    *("/v2/models/stats", "/v2/models/%73tats", "/v2/models/st%61ts", "/v2/models/stats/", "/v2/models/stats?x"),
    *("/v2", "/v2/models", "/v2/models/", "/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging"),
    *("/v2/trace/setting", "/v2/models/team-net/trace/setting", "/v2/cudasharedmemory/status", "/metrics"),
)
TWICE: Sequence[str] = (
    "",
    "X-Original-URL: /v2/models/other/infer\r\nX-Rewrite-URL: /v2/models/other/infer\r\n",
    "X-HTTP-Method-Override: GET\r\n",
    "Host: other\r\n",
    "X-Tritonctl-Client: 127.0.0.1\r\nX-Tritonctl-Drawn: 1000000\r\n",
    "Authorization: Bearer nonsense\r\n",
)


def test_no_spelling_of_a_path_reaches_another_model(keyed: Keyed) -> None:
    api, secrets = keyed
    before, found = requests_to(api, "other"), Counter[int]()
    for target in TARGETS:
        for more in TWICE:
            for method in ("POST", "GET"):
                head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secrets['team']}\r\n{more}"
                head += f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
                status, body = spoken(urls(api)[0], head.encode() + BODY)
                found[status] += 1
                if status == 200 and body:
                    said = json.loads(body)
                    names = {said.get("model_name"), said.get("name")} | {
                        one["name"] for one in said.get("model_stats", ())
                    }
                    assert names - {None} <= {"team-net", "stats"}, f"{method} {target} {more!r}: {body[:300]!r}"
                    if method == "POST" and "model_name" in said:
                        assert said["outputs"][0]["data"] == [FACTORS["team-net"]] * 2
    assert found[200] >= 10, found
    assert requests_to(api, "other") == before


def test_body_with_two_lengths_hides_no_second_request(keyed: Keyed) -> None:
    api, secrets = keyed
    before = requests_to(api, "other")
    inner = f"POST /v2/models/other/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    start = f"POST /v2/models/team-net/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secrets['team']}\r\n"
    for lengths in (
        *("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        *(f"Content-Length: 0\r\nContent-Length: {len(inner)}\r\n", f"Content-Length: 0, {len(inner)}\r\n"),
        *("Transfer-Encoding: identity\r\nContent-Length: 0\r\n", "Transfer-Encoding: xchunked\r\n"),
        *("Transfer-Encoding : chunked\r\n", "Transfer-Encoding:\tchunked\r\nTransfer-Encoding: identity\r\n"),
        f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n",
        "Content-Length: 0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
    ):
        for between in (b"", b"0\r\n\r\n", BODY):
            spoken(urls(api)[0], start.encode() + lengths.encode() + b"\r\n" + between + inner, seconds=0.3)
    assert requests_to(api, "other") == before


def test_two_authorization_headers_are_refused(keyed: Keyed) -> None:
    """Which one counts would depend on who reads them: HAProxy, the activator and the API take different ones."""
    api, secrets = keyed
    for first, second in (("app", "team"), ("team", "app"), ("app", "app")):
        both = [("authorization", f"Bearer {secrets[key]}") for key in (first, second)]
        with grpc.insecure_channel(urls(api)[1]) as channel:
            method = channel.unary_unary(SERVICE + "ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                method(text(NAME, b"team-net") + tensors(), metadata=both, timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        path = "/v2/models/team-net/infer"
        assert httpx.post(f"http://{urls(api)[0]}{path}", headers=both, content=BODY).status_code == 401
        assert httpx.get(f"{api.url}/v1/models", headers=both).status_code == 401
