"""The one table from errors to HTTP: complete, documented, and what a store that is gone looks like."""

import re
from pathlib import Path

import psutil

from controlplane.api.problems import documented_codes
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.moto import moto_server


def test_every_error_code_is_documented_with_its_status() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text()
    written: dict[str, int] = {}
    for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]*) \|", text, re.MULTILINE):
        written.update({code: int(status) for code in re.findall(r"`([a-z-]+)`", codes)})
    internal = {"control-plane"}  # the root of the tree, which is never raised
    assert {code: status for code, status in documented_codes().items() if code not in internal}.items() <= (
        written.items()
    )


def test_unreachable_store_is_reported_as_unavailable(tmp_path: Path) -> None:
    with moto_server() as server:
        store = server.settings(server.new_bucket(), retries=0, timeout_seconds=2.0, head_max_age_seconds=0.0)
        with serving(settings_for(tmp_path, embedded=False, store=store)) as api:
            api.publish("kept", onnx_scale(2))
            process = next(
                child
                for child in psutil.Process().children(recursive=True)
                if "moto.server" in " ".join(child.cmdline())
                and server.endpoint_url.rpartition(":")[2] in child.cmdline()
            )
            process.kill()
            process.wait()
            answer = api.http.get("/v1/models/kept")
            api.problem(answer, 503, "store-unavailable")
            assert answer.headers["retry-after"]
            api.problem(api.http.put("/v1/models/other", json={}), 503, "store-unavailable")
            ready = api.http.get("/readyz")
            assert ready.status_code == 503
            assert not ready.json()["ready"]
            assert api.http.get("/healthz").status_code == 200
