"""TLS at the gateway, with a certificate made for the test: both protocols, both ways."""

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import trustme

from controlplane.settings import GatewaySettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import ones, until, urls, way

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Path]]:
    """A gateway that speaks TLS, with one model that is loaded and one that is not; and its authority's file."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    settings = settings_for(
        folder / "data",
        embedded=True,
        gateway=GatewaySettings(enabled=True, tls_certificate=folder / "server.pem", max_connections=100),
    )
    with serving(settings) as api:
        for model, mode in (("net", "pinned"), ("lazy", "on-demand")):
            api.publish(model, onnx_scale(2.0))
            assert api.deploy(f"{model}:1", mode=mode)["state"] == "succeeded"
        until("the direct way", lambda: way(api, "net") == "direct")
        yield api, folder / "ca.pem"


@pytest.mark.parametrize("model", ["net", "lazy"])
def test_http_works_over_tls(secured: tuple[Api, Path], model: str) -> None:
    api, authority = secured
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    url = f"https://{urls(api)[0]}/v2/models/{model}/infer"
    with httpx.Client(verify=ssl.create_default_context(cafile=str(authority)), timeout=60) as client:
        assert client.post(url, json=body).raise_for_status().json()["outputs"][0]["data"] == [2.0, 4.0]


@pytest.mark.parametrize("model", ["net", "lazy"])
def test_grpc_works_over_tls(secured: tuple[Api, Path], model: str) -> None:
    api, authority = secured
    address = urls(api)[1]
    with triton_grpc.InferenceServerClient(address, ssl=True, root_certificates=str(authority)) as client:
        assert client.infer(model, ones()).as_numpy("y").tolist() == [[2.0, 2.0]]


def test_client_without_tls_or_with_other_ca_gets_no_answer(secured: tuple[Api, Path]) -> None:
    api, _ = secured
    assert api.ok(api.http.get("/v1/gateway"))["tls"] is True
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{urls(api)[0]}/v2/health/ready")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{urls(api)[0]}/v2/health/ready")


def test_one_address_cannot_take_all_connections(secured: tuple[Api, Path]) -> None:
    """Idle connections of one address leave half of them to others; here the limit is 100 in all."""
    api, authority = secured
    host, _, port = urls(api)[0].rpartition(":")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(120)]

        def closed() -> int:
            readable, _, _ = select.select(idle, [], [], 0)
            return len(readable)

        until("those beyond the limit are closed", lambda: closed() >= 120 - 50)
        transport = httpx.HTTPTransport(
            verify=ssl.create_default_context(cafile=str(authority)), local_address="127.0.0.2"
        )
        with httpx.Client(transport=transport, timeout=30) as other:
            assert other.get(f"https://{urls(api)[0]}/v2/health/live").status_code == 200
