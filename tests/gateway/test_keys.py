"""API keys at the gateway: the same on the direct way and at the activator, over both protocols."""

from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.cli.exit_codes import ExitCode, exit_code
from controlplane.client.credentials import Credentials
from controlplane.client.errors import ClientError
from controlplane.client.gateway import GatewayClient, why_not
from controlplane.gateway.views import GatewayAddress
from tests.support.api import Api
from tests.support.gateway import ones, until, urls

pytestmark = pytest.mark.triton


def ask(api: Api, kind: Any, model: str, key: str | None, header: str = "authorization") -> str:
    """``ok``, or the status of the refusal."""
    headers = {header: f"Bearer {key}"} if key else {}
    with kind.InferenceServerClient(urls(api)[kind is triton_grpc]) as client:
        try:
            client.infer(model, ones(kind), headers=headers)
        except InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
        return "ok"


CASES = [
    (None, "other", "401", "UNAUTHENTICATED"),
    ("nonsense", "other", "401", "UNAUTHENTICATED"),
    ("gone", "other", "401", "UNAUTHENTICATED"),
    ("app", "other", "ok", "ok"),
    ("app", "team-lazy", "ok", "ok"),
    ("root", "other", "ok", "ok"),
    ("team", "team-net", "ok", "ok"),
    ("team", "team-lazy", "ok", "ok"),
    ("team", "other", "403", "PERMISSION_DENIED"),
    ("team", "unknown", "403", "PERMISSION_DENIED"),
    ("reader", "team-net", "403", "PERMISSION_DENIED"),
    ("reader", "team-lazy", "403", "PERMISSION_DENIED"),
]


@pytest.mark.parametrize(("key", "model", "http", "grpc"), CASES)
def test_key_admits_only_its_models(
    keyed: tuple[Api, dict[str, str]], key: str | None, model: str, http: str, grpc: str
) -> None:
    api, secrets = keyed
    token = secrets.get(key, key) if key else None
    assert ask(api, triton_http, model, token) == http
    assert ask(api, triton_grpc, model, token) == grpc


def test_key_without_limits_uses_direct_route(keyed: tuple[Api, dict[str, str]]) -> None:
    """A key that is bound to models does so over HTTP, where the path is the name."""
    api, secrets = keyed
    gateway = api.plane.gateway
    assert gateway is not None
    before = gateway.stats.requests.total()
    assert ask(api, triton_http, "team-net", secrets["team"]) == "ok"
    for kind in (triton_http, triton_grpc):
        assert ask(api, kind, "other", secrets["app"]) == "ok"
    assert gateway.stats.requests.total() == before
    assert ask(api, triton_grpc, "team-net", secrets["team"]) == "ok"
    assert gateway.stats.requests.total() == before + 1


@pytest.mark.parametrize(("kind", "refused"), [(triton_http, "429"), (triton_grpc, "RESOURCE_EXHAUSTED")])
def test_rate_limited_key_is_refused_above_its_limit(
    keyed: tuple[Api, dict[str, str]], kind: Any, refused: str
) -> None:
    api, secrets = keyed
    assert refused in [ask(api, kind, "other", secrets["slow"]) for _ in range(4)]


def test_each_message_of_a_stream_is_authorized(keyed: tuple[Api, dict[str, str]]) -> None:
    api, secrets = keyed
    answers: list[Any] = []
    with triton_grpc.InferenceServerClient(urls(api)[1]) as client:
        client.start_stream(
            lambda result, error: answers.append(error or result),
            headers={"authorization": f"Bearer {secrets['team']}"},
        )
        client.async_stream_infer("team-net", ones())
        client.async_stream_infer("other", ones())
        until("two answers", lambda: len(answers) == 2)
        client.stop_stream()
    (refused,) = [answer for answer in answers if isinstance(answer, Exception)]
    assert "but not 'other'" in str(refused)


def test_health_needs_no_key_but_metadata_needs_key_for_all_models(keyed: tuple[Api, dict[str, str]]) -> None:
    api, secrets = keyed
    for kind in (triton_http, triton_grpc):
        with kind.InferenceServerClient(urls(api)[kind is triton_grpc]) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            for key in (None, secrets["team"]):
                with pytest.raises(InferenceServerException):
                    client.get_server_metadata(headers={"authorization": f"Bearer {key}"} if key else {})
            assert client.get_server_metadata(headers={"authorization": f"Bearer {secrets['app']}"})


def test_revoked_key_is_refused_on_direct_route(keyed: tuple[Api, dict[str, str]]) -> None:
    api, _ = keyed
    made = api.ok(api.http.post("/v1/keys", json={"name": "short", "scopes": ["infer"]}), 201)
    gateway = api.plane.gateway
    assert gateway is not None
    assert ask(api, triton_http, "other", made["secret"]) == "ok"  # at once: the activator knows it
    api.ok(api.http.delete("/v1/keys/short"))
    until("the revocation", lambda: ask(api, triton_http, "other", made["secret"]) == "401")


@pytest.mark.parametrize(
    ("key", "model", "code"),
    [
        ("app", "other", ExitCode.OK),
        ("root", "team-lazy", ExitCode.OK),
        ("team", "other", ExitCode.DENIED),
        ("gone", "other", ExitCode.DENIED),
        ("app", "unknown", ExitCode.NOT_FOUND),
    ],
)
def test_cli_sends_its_key(keyed: tuple[Api, dict[str, str]], key: str, model: str, code: ExitCode) -> None:
    api, secrets = keyed
    address = GatewayAddress.model_validate(api.ok(api.http.get("/v1/info"))["gateway"])
    shown = Credentials(secrets[key])
    assert why_not(address, api.url, shown) == ""
    tensors = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]
    with GatewayClient(address.http_url, shown) as gateway:
        if code is ExitCode.OK:
            assert gateway.ask(model, tensors, None, version=None, timeout=60)["model_version"] == "1"
            return
        with pytest.raises(ClientError) as refused:
            gateway.ask(model, tensors, None, version=None, timeout=60)
    assert exit_code(refused.value) is code
    assert secrets[key] not in refused.value.message


def test_cli_does_not_send_key_over_unencrypted_connection(keyed: tuple[Api, dict[str, str]]) -> None:
    api, secrets = keyed
    address = GatewayAddress.model_validate(api.ok(api.http.get("/v1/info"))["gateway"])
    elsewhere = address.model_copy(update={"http_url": "http://192.0.2.1:8091"})
    assert "unencrypted" in why_not(elsewhere, "https://192.0.2.1:8090", Credentials(secrets["app"]))
    assert why_not(elsewhere, "https://192.0.2.1:8090", Credentials()) == ""
    assert why_not(elsewhere.model_copy(update={"tls": True}), "https://192.0.2.1:8090", Credentials("k")) == ""
    assert "on another machine" in why_not(address, "http://192.0.2.1:8090", Credentials())
    assert "HAProxy" in why_not(address.model_copy(update={"ready": False}), api.url, Credentials())
