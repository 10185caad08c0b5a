"""Model directories under memory pressure, with a killed Triton and a packed environment, through the gateway."""

import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from controlplane.settings import MemorySettings
from tests.support.api import Api, serving, settings_for
from tests.support.gateway import grpc_client, triton_pid
from tests.triton_format import directories
from tests.triton_format.conftest import publish

pytestmark = [pytest.mark.triton, pytest.mark.slow]
MIB = 1 << 20
DEADLINE_SECONDS = 180.0


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A gateway before a Triton that has room for one of two models of about 200 MiB."""
    memory = MemorySettings(budget_bytes={"host": 330 * MIB}, minimum_residence_seconds=0.1, poll_interval_seconds=0.2)
    with serving(settings_for(tmp_path_factory.mktemp("tight"), embedded=True, memory=memory)) as api:
        yield api


def heavy(factor: float) -> dict[str, bytes]:
    """A Python model that scales and takes 160 MiB."""
    body = (
        "    def initialize(self, args):\n"
        f"        self.ballast = np.ones({160 * MIB}, np.uint8)\n\n"
        "    def execute(self, requests):\n"
        f"        return [answer(tensor(request) * {factor}) for request in requests]\n"
    )
    return directories.python(body, "")


def ask(api: Api, model: str) -> tuple[list[float], str]:
    """Send a request through the gateway, again while the server restarts."""
    tensor = InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2], np.float32))
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        with grpc_client(api) as client:
            try:
                answer = client.infer(model, [tensor], client_timeout=60)
            except InferenceServerException:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return answer.as_numpy("y").tolist(), answer.get_response().model_version


def evictions(api: Api) -> dict[str, int]:
    (server,) = api.ok(api.http.get("/v1/memory"))["items"]
    return {model["model"]: model["evictions"] for model in server["models"]}


def test_models_evict_each_other_and_answer(tight: Api) -> None:
    for name, factor in (("first", 2.0), ("second", 3.0)):
        publish(tight, name, heavy(factor))
        tight.deploy(f"{name}:1", mode="on-demand", bake_seconds=0)
    end = time.monotonic() + DEADLINE_SECONDS
    while min(evictions(tight).get(name, 0) for name in ("first", "second")) < 1:
        assert time.monotonic() < end, evictions(tight)
        assert ask(tight, "first") == ([2.0, 4.0], "1")
        assert ask(tight, "second") == ([3.0, 6.0], "1")


def test_killed_triton_serves_again_and_rolls_back(tight: Api) -> None:
    publish(tight, "steady", directories.scaling(2.0))
    publish(tight, "steady", directories.scaling(5.0))
    for version in (1, 2):
        assert tight.deploy(f"steady:{version}")["state"] == "succeeded"
    assert ask(tight, "steady") == ([5.0, 10.0], "2")
    killed = triton_pid(tight)
    os.kill(killed, signal.SIGKILL)
    assert ask(tight, "steady") == ([5.0, 10.0], "2")
    assert triton_pid(tight) != killed
    back = tight.ok(tight.http.post("/v1/deployments/steady/rollback", json={}), 202)
    assert tight.operation(back["operation_id"], wait=DEADLINE_SECONDS)["state"] == "succeeded"
    assert ask(tight, "steady") == ([2.0, 4.0], "1")


def environment() -> bytes:
    """A packed environment, as conda-pack makes them: an interpreter's folder with a package that only it has.

    Its interpreter is a link to that of the tests, and it finds NumPy where the tests have it.
    """
    activate = 'export PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd):$PATH"\n'
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    interpreter = Path(sys.executable).resolve()
    files = {
        "bin/activate": activate,
        "pyvenv.cfg": f"home = {interpreter.parent}\n",
        f"{packages}/only_packed.py": "FACTOR = 7.0\n",
        f"{packages}/numpy.pth": f"{Path(np.__file__).parent.parent}\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(interpreter)
        archive.addfile(link)
    return buffer.getvalue()


def test_execution_environment_is_a_file_of_the_version(tight: Api) -> None:
    body = (
        "    def execute(self, requests):\n"
        "        import only_packed\n"
        "        return [answer(tensor(request) * only_packed.FACTOR) for request in requests]\n"
    )
    config = (
        'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/packed.tar.gz" } }\n'
    )
    publish(tight, "packed", {**directories.python(body, config), "packed.tar.gz": environment()})
    assert tight.deploy("packed:1")["state"] == "succeeded"
    assert ask(tight, "packed") == ([7.0, 14.0], "1")
    manifest = tight.ok(tight.http.get("/v1/models/packed/versions/1"))["manifest"]
    assert "packed.tar.gz" in {file["path"] for file in manifest["files"]}
