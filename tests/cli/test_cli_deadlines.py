"""A wait ends at its timeout, even if no event ever arrives."""

from collections.abc import Iterator

import pytest

from controlplane.settings import TritonServerSettings, TritonSettings
from tests.cli.conftest import Cli
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.processes import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A control plane whose only Triton server cannot be reached: no deployment ever changes its state."""
    folder = tmp_path_factory.mktemp("unreachable")
    gone = TritonServerSettings(name="gone", grpc_url=f"127.0.0.1:{free_port()}", repository=folder / "gone")
    triton = TritonSettings(embedded=False, servers=(gone,))
    with serving(settings_for(folder, embedded=False, triton=triton)) as api:
        api.publish("net", onnx_scale(2.0))
        yield api


def test_deploy_ends_at_its_timeout_when_no_event_arrives(
    unreachable: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cli = Cli(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("work"))
    # Less than the time between two heartbeats of the API.
    result = cli("--url", unreachable.url, "deploy", "net:1", "--wait", "--timeout", "3", timeout=60)
    assert result.code == 8, result
    assert "takes longer than 3 s; it continues as operation deploy.net.1" in result.err
    # More than that time: heartbeats alone must not keep the command waiting.
    result = cli("--url", unreachable.url, "deploy", "net:1", "--wait", "--timeout", "17", timeout=60)
    assert result.code == 8, result
