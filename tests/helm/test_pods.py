"""What the chart renders works: its commands and environment run a control plane, a Triton and a gateway."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.helm.cli import render
from tests.helm.pods import Cluster
from tests.support.api import onnx_scale
from tests.support.s3server import S3Server

SECRETS = {
    "bucket": {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret"},
    "triton-control": {"control-key": "0f1e2d3c"},
}


def until(condition: Callable[[], object], log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, log.read_text(errors="replace")[-4000:]
        time.sleep(0.1)


@pytest.mark.triton
@pytest.mark.slow
def test_a_release_serves_a_model_through_its_gateway(tmp_path: Path, moto: S3Server) -> None:
    values = {
        "store": {
            "url": f"s3://{moto.new_bucket()}/prod",
            "endpointUrl": moto.endpoint_url,
            "region": "us-east-1",
            "existingSecret": "bucket",
        },
        "triton": {"controlKey": {"existingSecret": "triton-control"}, "gpu": {"count": 0}},
        "config": {"log_format": "json", "reconciler": {"interval_seconds": 0.5}},
    }
    cluster = Cluster(tmp_path, render(values), SECRETS)
    ports = cluster.ports
    server = cluster.pod("StatefulSet", "prod-tritonctl-server")
    gateway = cluster.pod("Deployment", "prod-tritonctl-gateway")
    beside = {f"127.0.0.1:{inner}": f"127.0.0.1:{ports[name]}" for name, inner in TRITON.items()}
    beside["8090"] = str(ports["api"])
    elsewhere = {f"prod-tritonctl-triton:{inner}": f"127.0.0.1:{ports[name]}" for name, inner in TRITON.items()}
    elsewhere |= {str(inner): str(ports[name]) for name, inner in GATEWAY.items()}
    url = f"http://127.0.0.1:{ports['api']}"
    with (
        cluster.started(server, "controlplane", beside) as log,
        cluster.started(server, "triton", {}) as triton_log,
        cluster.started(gateway, "gateway", elsewhere) as gateway_log,
    ):
        until(lambda: httpx.get(f"{url}/healthz").is_success, log)
        until(lambda: httpx.get(f"http://127.0.0.1:{ports['http']}/v2/health/ready").is_success, triton_log)
        assert httpx.get(f"{url}/v1/models").status_code == 401, "before the first key, every request is refused"

        inside = cluster.environment(server, "controlplane", beside)
        program = str(Path(sys.executable).with_name("tritonctl"))
        key_file = tmp_path / "root.key"

        def tritonctl(*arguments: str) -> None:
            done = subprocess.run(
                [program, *arguments], env=inside, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr + log.read_text(errors="replace")[-3000:]

        tritonctl("keys", "create", "root", "--scope", "admin", "--offline", "--out", str(key_file))
        headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
        until(lambda: httpx.get(f"{url}/v1/models", headers=headers).is_success, log)
        model = tmp_path / "net.onnx"
        model.write_bytes(onnx_scale(3.0))
        remote = ("--url", url, "--api-key-file", str(key_file))
        tritonctl("push", "net", str(model), *remote)
        tritonctl("deploy", "net", "--wait", *remote)

        asked = f"http://127.0.0.1:{ports['gateway-http']}/v2/models/net/infer"
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
        answers: list[httpx.Response] = []

        def answered() -> bool:
            answers.append(httpx.post(asked, json={"inputs": [tensor]}, headers=headers, timeout=60))
            return answers[-1].is_success

        until(answered, gateway_log)
        assert answers[-1].json()["outputs"][0]["data"] == [3.0, 6.0]
        assert httpx.post(asked, json={"inputs": [tensor]}, timeout=60).status_code == 401
        for path in ("healthz", "readyz"):
            assert httpx.get(f"http://127.0.0.1:{ports['gateway-health']}/{path}", timeout=60).is_success, path
        unlocked = httpx.post(f"http://127.0.0.1:{ports['http']}/v2/repository/models/net/unload", timeout=60)
        assert not unlocked.is_success, "Triton refuses model control without the key"
        metrics = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text
        budgets = [line for line in metrics.splitlines() if line.startswith("tritonctl_memory_budget_bytes{")]
        assert [float(line.split()[-1]) for line in budgets if '"host"' in line] == [12884901888], budgets
    assert SECRETS["triton-control"]["control-key"] not in log.read_text() + gateway_log.read_text()


TRITON = {"http": 8000, "grpc": 8001, "metrics": 8002}
GATEWAY = {"gateway-health": 8090, "gateway-http": 8091, "gateway-grpc": 8092}
