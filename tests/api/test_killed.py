"""A control plane that is killed with SIGKILL, and the one that takes its place on the same data folder."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.api import onnx_scale, sha256

_RUN = """
import sys
from pathlib import Path
from controlplane.process import run
from controlplane.settings import ApiSettings, Settings, TritonSettings
run(Settings(data_dir=Path(sys.argv[1]), api=ApiSettings(port=0), triton=TritonSettings(embedded=False)))
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    """A control plane as a process, killed at the end of the block."""
    ready = folder / "up.json"
    ready.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(folder)])
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.02)
        with httpx.Client(base_url=json.loads(ready.read_text())["url"], timeout=60) as http:
            yield process, http
    finally:
        process.kill()
        process.wait()


def publish(http: httpx.Client) -> str:
    data = onnx_scale(2)
    file = {"path": "model.onnx", "size_bytes": len(data), "sha256": sha256(data)}
    upload = http.post("/v1/uploads", json={"files": [file]}).raise_for_status().json()
    http.put(f"/v1/uploads/{upload['id']}/blobs/{file['sha256']}", content=data).raise_for_status()
    started = http.post("/v1/models/net/versions", json={"upload_id": upload["id"]}).raise_for_status().json()
    return str(started["id"])


def test_operations_of_a_killed_process_are_lost_without_leftovers(tmp_path: Path) -> None:
    with running(tmp_path) as (process, http):
        lost = publish(http)
        while not list(tmp_path.glob("work/converter-*")):
            assert http.get(f"/v1/operations/{lost}").json()["state"] in {"pending", "running"}
        process.kill()
        process.wait()
    with running(tmp_path) as (_, http):
        operation = http.get(f"/v1/operations/{lost}", params={"wait": 30}).json()
        assert (operation["kind"], operation["state"]) == ("publish", "failed")
        assert operation["error"]["code"] == "operation-lost"
        assert "start it again" in operation["error"]["detail"]
        assert lost in {item["id"] for item in http.get("/v1/operations").json()["items"]}
        assert list((tmp_path / "work").iterdir()) == []

        again = http.get(f"/v1/operations/{publish(http)}", params={"wait": 60}).json()
        assert again["state"] == "succeeded", again
        assert again["result"]["version"] == 1
    with running(tmp_path) as (_, http):  # now from the store, or from what was not written to it yet
        assert http.get(f"/v1/operations/{lost}").json() == operation
        assert http.get(f"/v1/operations/{again['id']}").json() == again
        assert list((tmp_path / "operations").iterdir()) == []
