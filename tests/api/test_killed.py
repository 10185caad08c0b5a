"""A control plane that is killed with SIGKILL, and the one that takes its place on the same data folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.api import onnx_scale, sha256
from tests.support.cli_forks import Forked
from tests.support.control_process import started


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[Forked, httpx.Client]]:
    """Run a control plane without a Triton as a process, killed at the end of the block."""
    with (
        started(folder, "serve") as (process, document),
        httpx.Client(base_url=document["url"], timeout=60) as http,
    ):
        yield process, http


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
