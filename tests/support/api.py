"""The real application on a real socket, and a client for its protocols."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import uvicorn
from onnx import TensorProto, helper

from controlplane.app import ControlPlane, build
from controlplane.settings import ApiSettings, ReconcilerSettings, Settings, StoreSettings, TritonSettings
from tests.support.triton import LoopThread


def onnx_scale(factor: float, width: int = 2) -> bytes:
    """y = factor * x, batched, as an ONNX file."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "scale", [x], [y], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Api:
    """A running application and a client of it."""

    plane: ControlPlane
    http: httpx.Client
    url: str

    def upload(self, files: dict[str, bytes]) -> str:
        """Announce and send files; return the upload's id."""
        announced = [{"path": path, "size_bytes": len(data), "sha256": sha256(data)} for path, data in files.items()]
        upload = self.ok(self.http.post("/v1/uploads", json={"files": announced}), 201)
        for file in upload["files"]:
            if file["state"] == "missing":
                url = f"/v1/uploads/{upload['id']}/blobs/{file['sha256']}"
                self.ok(self.http.put(url, content=files[file["path"]]))
        return str(upload["id"])

    def publish(self, model: str, data: bytes, path: str = "model.onnx", **fields: Any) -> dict[str, Any]:
        """Publish one file as a version; return the operation's result."""
        body = {"upload_id": self.upload({path: data}), **fields}
        return self.done(self.http.post(f"/v1/models/{model}/versions", json=body))

    def deploy(self, reference: str, **settings: Any) -> dict[str, Any]:
        """Deploy a version and wait until it is settled; return the operation."""
        model = reference.partition(":")[0].partition("@")[0]
        body = {"reference": reference, **({"settings": settings} if settings else {})}
        deployment = self.ok(self.http.put(f"/v1/deployments/{model}", json=body), 202)
        return self.operation(deployment["operation_id"])

    def infer(self, model: str, *rows: list[float]) -> tuple[list[float], int]:
        """Send a request to a model made by `onnx_scale`; return its flat output and the version that answered."""
        body = {"inputs": [{"name": "x", "data": list(rows)}]}
        answer = self.ok(self.http.post(f"/v1/deployments/{model}/infer", json=body))
        return answer["outputs"][0]["data"], int(answer["model_version"])

    def operation(self, operation_id: str, wait: float = 60) -> dict[str, Any]:
        """Return an operation once it ended."""
        return self.ok(self.http.get(f"/v1/operations/{operation_id}", params={"wait": wait}))

    def done(self, started: httpx.Response) -> dict[str, Any]:
        """Return the result of the operation that a request started; it must succeed."""
        operation = self.operation(self.ok(started, 202)["id"])
        assert operation["state"] == "succeeded", operation
        result: dict[str, Any] = operation["result"]
        return result

    def failed(self, started: httpx.Response) -> dict[str, Any]:
        """Return the error of the operation that a request started; it must fail."""
        operation = self.operation(self.ok(started, 202)["id"])
        assert operation["state"] == "failed", operation
        error: dict[str, Any] = operation["error"]
        return error

    @staticmethod
    def ok(response: httpx.Response, status: int = 200) -> dict[str, Any]:
        assert response.status_code == status, f"{response.status_code} {response.text}"
        body: dict[str, Any] = response.json()
        return body

    @staticmethod
    def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
        """Return the problem in an error response, after checking its form."""
        assert response.status_code == status, f"{response.status_code} {response.text}"
        assert response.headers["content-type"] == "application/problem+json"
        body: dict[str, Any] = response.json()
        assert body["code"] == code, body
        assert body["status"] == status
        assert body["type"] == f"urn:triton-control-plane:error:{code}"
        assert body["title"]
        assert body["detail"]
        assert unquote(body["instance"]) == response.request.url.path
        return body


def settings_for(folder: Path, *, embedded: bool, store: StoreSettings | None = None, **groups: Any) -> Settings:
    """Return settings for a test: short intervals, free ports, all files in one folder."""
    defaults: dict[str, Any] = {
        "store": store or StoreSettings(),
        # Tests load and unload models directly in Triton; another test checks that this needs a key.
        "triton": TritonSettings(embedded=embedded, load_timeout_seconds=60, restrict_control=False),
        "reconciler": ReconcilerSettings(interval_seconds=0.3, lease_seconds=15),
        "api": ApiSettings(port=0),
    }
    return Settings(data_dir=folder, **{**defaults, **groups})


@contextmanager
def serving(settings: Settings) -> Iterator[Api]:
    """Run the application in its own thread, on a free port."""
    loop = LoopThread()
    plane = build(settings)
    server = uvicorn.Server(
        uvicorn.Config(plane.fastapi, port=0, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    )
    task: Future[Any] | None = None
    try:
        loop.run(plane.start())
        task = loop.start(server.serve())
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{host}:{port}"
        with httpx.Client(base_url=url, headers={"X-Actor": "ada"}, timeout=90) as http:
            yield Api(plane, http, url)
    finally:
        server.should_exit = True
        if task is not None:
            task.result(30)
        loop.run(plane.stop())
        loop.close()
