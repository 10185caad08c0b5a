"""Secrets stay where they are: the system is run with known ones, through failures, and all that it says is searched.

The secrets: of the S3 store, of the webhook (its signing secret, and a token in its URL), of Triton's model control, of
API keys, of the TLS key.
"""

import contextlib
import json
import os
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme

from controlplane.triton.client import CONTROL_HEADER
from tests.cli.conftest import Cli
from tests.support.api import onnx_scale, sha256
from tests.support.cli_forks import control_planes, start_control_plane
from tests.support.moto import moto_server
from tests.support.s3server import S3Server
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.slow

SECRETS = {
    "S3": "s3-5ecret-a8f1c2d3e4",
    "webhook": "webhook-5ecret-b7e2d1c0",
    "webhook URL": "hook-t0ken-c6d3e2f1",
    "control key": "c0ntrol-5ecret-d5c4b3a2",
    "TLS password": "tls-5ecret-e4b5a697",
}


class _Refusing(BaseHTTPRequestHandler):
    """A receiver that takes nothing and keeps what it was sent."""

    heard: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.heard.append(body.decode() + str(self.headers))
        self.send_response(500)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def refusing_receiver() -> Iterator[tuple[str, list[str]]]:
    heard: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Refusing,), {"heard": heard}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{SECRETS['webhook URL']}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def until(what: str, seen: Any) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


@pytest.mark.triton
def test_no_output_contains_a_secret(tmp_path: Path, triton: RunningTriton) -> None:
    cli = Cli(tmp_path / "data", tmp_path)
    said: dict[str, str] = {}

    # TLS with a locked key.
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    lock = ["openssl", "pkcs8", "-topk8", "-passout", f"pass:{SECRETS['TLS password']}", "-out", "server.key"]
    subprocess.run(lock, cwd=tmp_path, input=issued.private_key_pem.bytes(), check=True, capture_output=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    with moto_server() as moto, refusing_receiver() as (hook, heard):
        server = {
            "name": "shared",
            "grpc_url": triton.server.grpc_url,
            "metrics_url": triton.server.metrics_url,
            "http_url": triton.server.http_url,
            "repository": str(triton.repository.root),
            "control_key": SECRETS["control key"],
        }
        environment = {
            **cli.environment,
            "CONTROLPLANE_LOG_LEVEL": "debug",
            "CONTROLPLANE_STORE__URL": f"s3://{moto.new_bucket()}/registry",
            "CONTROLPLANE_STORE__ENDPOINT_URL": moto.endpoint_url,
            "CONTROLPLANE_STORE__REGION": "us-east-1",
            "CONTROLPLANE_STORE__ACCESS_KEY_ID": "tests",
            "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": SECRETS["S3"],
            "CONTROLPLANE_STORE__RETRIES": "0",
            "CONTROLPLANE_STORE__TIMEOUT_SECONDS": "2",
            "CONTROLPLANE_TRITON__SERVERS": json.dumps([server]),
            "CONTROLPLANE_RECONCILER__INTERVAL_SECONDS": "0.3",
            "CONTROLPLANE_MONITORING__INTERVAL_SECONDS": "0.2",
            "CONTROLPLANE_MONITORING__OBJECTIVE_INTERVAL_SECONDS": "0.2",
            "CONTROLPLANE_MONITORING__MIN_REQUESTS": "1",
            "CONTROLPLANE_MONITORING__BURN_RULES": '[{"long_seconds": 10, "short_seconds": 5, "factor": 1}]',
            "CONTROLPLANE_MONITORING__WEBHOOK_URL": hook,
            "CONTROLPLANE_MONITORING__WEBHOOK_SECRET": SECRETS["webhook"],
            "CONTROLPLANE_MONITORING__WEBHOOK_BACKOFF_INITIAL_SECONDS": "0.1",
            "CONTROLPLANE_API__TLS__CERT_FILE": "server.pem",
            "CONTROLPLANE_API__TLS__KEY_FILE": "server.key",
            "CONTROLPLANE_API__TLS__KEY_PASSWORD": SECRETS["TLS password"],
        }
        made = cli.ok("keys", "create", "root", "--scope", "admin", "--offline", "-o", "json", **environment)
        root = str(made.json["secret"])
        secrets = {**SECRETS, "API key": root, "API key's secret part": root.split("_", 2)[2]}
        log = tmp_path / "serve.log"
        process = start_control_plane(("serve", "--port", "0"), cwd=tmp_path, env=environment, log=log)
        try:
            record = cli.data_dir / "up.json"
            until("it is up", lambda: record.exists() or process.poll() is not None)
            assert record.exists(), log.read_text()
            url = json.loads(record.read_text())["url"]
            said["up.json"] = record.read_text()
            secrets["local key"] = (cli.data_dir / "up.key").read_text()
            trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            shown = {"Authorization": f"Bearer {root}"}
            with httpx.Client(base_url=url, verify=trusted, headers=shown, timeout=90) as http:

                def tell(name: str, answer: httpx.Response) -> httpx.Response:
                    said[name] = answer.text + str(answer.headers)
                    return answer

                data = onnx_scale(2)
                announced = {"files": [{"path": "model.onnx", "size_bytes": len(data), "sha256": sha256(data)}]}
                upload = tell("announce", http.post("/v1/uploads", json=announced)).json()["id"]
                presigned = tell("presign", http.post(f"/v1/uploads/{upload}/presigned", json={}))
                assert presigned.status_code == 200
                tell("blob", http.put(f"/v1/uploads/{upload}/blobs/{sha256(data)}", content=data))
                started = tell("publish", http.post("/v1/models/net/versions", json={"upload_id": upload})).json()
                tell("published", http.get(f"/v1/operations/{started['id']}", params={"wait": 60}))
                body = {"reference": "net:1", "settings": {"objectives": {"p99_milliseconds": 0.0001}}}
                tell("deploy", http.put("/v1/deployments/net", json=body))
                tell("wait", http.get("/v1/deployments/net/wait", params={"timeout": 60}))
                asked = {"inputs": [{"name": "x", "data": [[1, 2]]}]}

                def burns() -> bool:
                    assert tell("infer", http.post("/v1/deployments/net/infer", json=asked)).status_code == 200
                    return len(heard) >= 2

                until("the webhook is refused, and tried again", burns)

                # Keys that do not count.
                for number, token in enumerate((root[:-3] + "abc", "tck_", root + "x", "Basic")):
                    secrets[f"wrong key {number}"] = token if len(token) > 10 else "n0-such-token"
                    wrong = {"Authorization": f"Bearer {token}"}
                    assert tell(f"wrong {number}", http.get("/v1/models", headers=wrong)).status_code == 401
                    result = cli("models", "-o", "json", TRITONCTL_API_KEY=token)
                    said[f"CLI wrong {number}"] = result.out + result.err
                gone = http.post("/v1/keys", json={"name": "gone", "scopes": ["read"]}).json()["secret"]
                secrets["revoked key"] = gone
                tell("revoke", http.delete("/v1/keys/gone"))
                revoked = http.get("/v1/models", headers={"Authorization": f"Bearer {gone}"})
                assert tell("revoked", revoked).status_code == 401

                every_route(http, tell, "well")
                for arguments in (("doctor",), ("keys", "list"), ("servers", "-o", "json"), ("events",)):
                    trusting: dict[str, Any] = {**environment, "TRITONCTL_CA_FILE": "ca.pem"}
                    result = cli(*arguments, **trusting)
                    said[" ".join(arguments)] = result.out + result.err

                # The store goes away, and everything is asked again.
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):  # another test's, that has just ended
                        words = child.cmdline()
                        if "moto.server" in words and moto.endpoint_url.rpartition(":")[2] in words:
                            child.kill()
                until("the store is missed", lambda: http.get("/v1/models/other").status_code == 503)
                every_route(http, tell, "without a store")
                with pytest.raises(httpx.HTTPError):
                    httpx.get(url, verify=ssl.create_default_context())
        finally:
            process.terminate()
            process.wait(60)
        said["webhook"] = "".join(heard)
        said["log"] = log.read_text()
        operations = cli.data_dir / "operations"
        said["data folder"] = "".join(
            path.read_text(errors="replace")
            for path in (operations.rglob("*") if operations.exists() else ())
            if path.is_file()
        )
        # It does not start: what is wrong is said, and not with what.
        for name, change in {
            "no store": {},
            "a wrong password": {"CONTROLPLANE_API__TLS__KEY_PASSWORD": SECRETS["TLS password"] + "x"},
            "servers that are no JSON": {"CONTROLPLANE_TRITON__SERVERS": json.dumps([server])[:-1]},
            "a server without an address": {
                "CONTROLPLANE_TRITON__SERVERS": json.dumps([{"control_key": SECRETS["control key"]}])
            },
            "a secret in the wrong place": {"CONTROLPLANE_API__PORT": SECRETS["S3"]},
        }.items():
            for debug in ((), ("--debug",)):
                # Not through `Cli`, which takes a traceback for a fault: with --debug one is asked for.
                failed = control_planes().run(
                    (*debug, "serve", "--port", "0"),
                    cwd=tmp_path,
                    env={**environment, **change},
                    stdin=None,
                    timeout=120,
                )
                assert failed.code != 0, name
                said[f"{name} {debug}"] = failed.out + failed.err

    assert len(said) > 100
    assert "Check the endpoint" in said["log"], "failures were logged"
    found = {
        f"{where}: {what}"
        for where, text in said.items()
        for what, secret in secrets.items()
        if secret in text and not (where == "webhook" and what == "webhook URL")
    }
    assert not found
    assert CONTROL_HEADER not in said["log"]


def every_route(http: httpx.Client, tell: Any, when: str) -> None:
    """Ask every GET of the OpenAPI document whose response ends."""
    filled = {"model": "net", "version": "1", "path": "model.onnx", "name": "shared", "key": "root"}
    for template, operations in http.get("/openapi.json").json()["paths"].items():
        if "get" in operations and operations["get"]["operationId"] not in {"followOperation", "waitForDeployment"}:
            path = re.sub(r"\{(\w+)\}", lambda match: filled.get(match[1], "none"), template)
            tell(f"GET {path} {when}", http.get(path))


@pytest.mark.ceph
def test_error_for_rejected_credentials_contains_no_secret(tmp_path: Path, ceph: S3Server) -> None:
    """A real S3 server that checks them: what it refuses, and what boto3 makes of it, names no secret."""
    wrong = "wr0ng-5ecret-f0e1d2c3"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))},
        "TRITONCTL_DATA_DIR": str(tmp_path / "data"),
        "CONTROLPLANE_STORE__URL": f"s3://{ceph.new_bucket()}/registry",
        "CONTROLPLANE_STORE__ENDPOINT_URL": ceph.endpoint_url,
        "CONTROLPLANE_STORE__REGION": "us-east-1",
        "CONTROLPLANE_STORE__ACCESS_KEY_ID": ceph.access_key_id,
        "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": wrong,
        "CONTROLPLANE_LOG_LEVEL": "debug",
    }
    for command in (("serve", "--port", "0"), ("doctor",), ("keys", "list", "--offline")):
        for debug in ((), ("--debug",)):
            result = control_planes().run((*debug, *command), cwd=tmp_path, env=environment, stdin=None, timeout=120)
            assert result.code != 0, command
            assert "denied access" in result.out + result.err
            assert wrong not in result.out + result.err
