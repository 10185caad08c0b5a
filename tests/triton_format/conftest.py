"""One application with a real Triton for all tests of model directories in a process."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api import Api, serving, settings_for


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("directories"), embedded=True)) as running:
        yield running


def publish(api: Api, model: str, files: dict[str, bytes], **fields: Any) -> dict[str, Any]:
    """Publish a model directory; return the operation's result."""
    body = {"upload_id": api.upload(files), **fields}
    return api.done(api.http.post(f"/v1/models/{model}/versions", json=body))


def refused(api: Api, model: str, files: dict[str, bytes], **fields: Any) -> str:
    """Publish a model directory that must be refused; return the message."""
    started = api.http.post(f"/v1/models/{model}/versions", json={"upload_id": api.upload(files), **fields})
    if started.status_code != 202:
        return str(started.json()["detail"])
    return str(api.failed(started)["detail"])


def ask(api: Api, model: str, *values: float, shape: list[int] | None = None) -> tuple[list[float], int]:
    """Send values as the input ``x``; return the output and the version that answered."""
    tensor = {"name": "x", "datatype": "FP32", "shape": shape or [len(values)], "data": list(values)}
    answer = api.ok(api.http.post(f"/v1/deployments/{model}/infer", json={"inputs": [tensor]}))
    return answer["outputs"][0]["data"], int(answer["model_version"])
